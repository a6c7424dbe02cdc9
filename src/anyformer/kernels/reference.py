"""Each operation as its equation: the fallback where no backend is faster, and what the tests compare backends with."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from anyformer.kernels.dropout import dropout_weights


def attention_weights(
    query: Float[Tensor, "batch heads queries head_dim"],
    key: Float[Tensor, "batch kv_heads keys head_dim"],
    attn_mask: Tensor | None = None,
    is_causal: bool = False,
    scale: float | None = None,
    softcap: float | None = None,
    sinks: Float[Tensor, " heads"] | None = None,
) -> Float[Tensor, "batch heads queries keys"]:
    """``softmax(scale q k^T + mask)`` (Vaswani et al. 2017, equation 1); every row sums to 1.

    A softcap bounds the scores before the mask: ``softcap * tanh(scores / softcap)`` (Gemma 2, section 2). The sink of
    a head is one more score of every row, whose weight is left out: a row then sums to less (gpt-oss, section 2.3).
    """
    scale = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    scores = (query * scale) @ repeat_kv(key, query).transpose(2, 3)
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    if is_causal:
        future = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
        scores = scores.masked_fill(future, -torch.inf)
    if attn_mask is not None:
        is_boolean = attn_mask.dtype == torch.bool
        scores = scores.masked_fill(~attn_mask, -torch.inf) if is_boolean else scores + attn_mask
    if sinks is None:
        return scores.softmax(dim=-1)
    sink = sinks.to(scores.dtype)[:, None, None].expand(*scores.shape[:3], 1)
    return torch.cat((scores, sink), dim=-1).softmax(dim=-1)[..., :-1]


def attention(
    query: Float[Tensor, "batch heads queries head_dim"],
    key: Float[Tensor, "batch kv_heads keys head_dim"],
    value: Float[Tensor, "batch kv_heads keys value_dim"],
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    softcap: float | None = None,
    sinks: Float[Tensor, " heads"] | None = None,
) -> Float[Tensor, "batch heads queries value_dim"]:
    """``dropout(softmax(scale q k^T + mask)) v``."""
    weights = attention_weights(query, key, attn_mask, is_causal, scale, softcap, sinks)
    return dropout_weights(weights, dropout_p) @ repeat_kv(value, query)


def repeat_kv(
    x: Float[Tensor, "batch kv_heads keys head_dim"], query: Tensor
) -> Float[Tensor, "batch heads keys head_dim"]:
    """Keys or values for each query head, where several share one (Ainslie et al. 2023)."""
    groups = query.shape[1] // x.shape[1]
    return x if groups == 1 else x.repeat_interleave(groups, dim=1)


def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``input @ weight.T + bias``."""
    return F.linear(input, weight, bias)


def activation(input: Tensor, function: Callable[[Tensor], Tensor], multiplier: Tensor | None = None) -> Tensor:
    """``function(input) * multiplier``."""
    return function(input) if multiplier is None else function(input) * multiplier


def rms_norm(input: Tensor, weight: Tensor, eps: float) -> Tensor:
    """``input / sqrt(mean(input^2) + eps) * weight`` (Zhang & Sennrich 2019, equation 4)."""
    return input * torch.rsqrt(input.square().mean(dim=-1, keepdim=True) + eps) * weight


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """``x cos + (-second, first) sin``, where ``first, second`` are the halves of x (RoFormer, equation 34)."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


def linear_cross_entropy(
    input: Float[Tensor, "tokens d_model"],
    linear_weight: Float[Tensor, "vocab d_model"],
    target: Int[Tensor, " tokens"],
    *,
    linear_bias: Float[Tensor, " vocab"] | None = None,
    label_smoothing: float = 0.0,
) -> Float[Tensor, ""]:
    """Mean of ``-(1 - s) log p(target) - s mean(log p)``, where ``p = softmax(input @ linear_weight.T + bias)``."""
    logits = F.linear(input, linear_weight, linear_bias)
    return F.cross_entropy(logits.float(), target, label_smoothing=label_smoothing)
