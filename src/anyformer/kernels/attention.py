"""Scaled dot-product attention: torch's fused kernel, or what is faster in training on a CPU."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from anyformer.kernels import reference
from anyformer.kernels.autocast import autocast_disabled, matmul_dtype
from anyformer.kernels.cpu import attention as cpu


def attention(
    query: Float[Tensor, "batch heads queries head_dim"],
    key: Float[Tensor, "batch kv_heads keys head_dim"],
    value: Float[Tensor, "batch kv_heads keys head_dim"],
    attn_mask: Bool[Tensor, "#batch #heads #queries keys"] | Float[Tensor, "#batch #heads #queries keys"] | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
) -> Float[Tensor, "batch heads queries head_dim"]:
    """``dropout(softmax(scale q k^T + mask)) v``, as `torch.nn.functional.scaled_dot_product_attention`.

    Where there are fewer key/value heads than query heads, each is shared by a group of them.

    Args:
        attn_mask: True where a query sees a key, or what is added to its score.
        dropout_p: Probability of dropping a weight.
        is_causal: Queries see only keys up to their own position; there are as many queries as keys.
        scale: Of the scores; None: ``1 / sqrt(head_dim)``.
    """
    scale = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    # The first that holds. On CPUs torch's fused kernel has no dropout, and what it takes instead is slower.
    if dropout_p > 0.0 and query.device.type == "cpu":
        return reference.attention(query, key, value, attn_mask, dropout_p, is_causal, scale)
    if _supports_compiled(query, attn_mask):
        bias = None if attn_mask is None else _by_key(attn_mask, query.shape[2])
        with autocast_disabled(query):
            out, _ = cpu.forward(query.bfloat16(), key.bfloat16(), value.bfloat16(), bias, scale, is_causal)
        return out
    if _supports_blockwise(query, key, attn_mask, is_causal):
        return blockwise_attention(query, key, value, attn_mask, is_causal, scale)
    grouped = query.shape[1] != key.shape[1]
    return F.scaled_dot_product_attention(
        query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=grouped
    )


def _supports_compiled(query: Tensor, attn_mask: Tensor | None) -> bool:
    if not query.requires_grad:
        return False
    if attn_mask is not None and attn_mask.requires_grad and attn_mask.shape[1:3] != query.shape[1:3]:
        return False
    return cpu.supports(query)


def _by_key(attn_mask: Tensor, queries: int) -> Float[Tensor, "#batch #heads keys padded_queries"]:
    """What is added to the scores, transposed, with the queries padded to whole blocks."""
    if attn_mask.dtype == torch.bool:
        attn_mask = torch.zeros(attn_mask.shape).masked_fill_(~attn_mask, -torch.inf)
    padding = -queries % cpu.QUERY_BLOCK
    return F.pad(attn_mask.float().expand(-1, -1, queries, -1).transpose(2, 3), (0, padding)).contiguous()


# Attention for training on a CPU, a block of queries at a time.
#
# Under a causal mask a query sees only what came before it, so a block of queries is multiplied with the keys up to its
# end and no more: half of the products of the whole square. The blocks fit a core's cache, and torch's fused kernel is
# slowed down by its own bookkeeping: in bfloat16 the blocks gain up to 4x at 26 tokens and 2x at 256, torch's kernel
# wins where texts are long (docs/measurements/training.md).

_QUERY_BLOCK = 64


def _supports_blockwise(query: Tensor, key: Tensor, attn_mask: Tensor | None, is_causal: bool) -> bool:
    if query.device.type != "cpu" or not query.requires_grad:
        return False
    if attn_mask is not None and attn_mask.requires_grad:
        return True  # The fused kernel has no gradient of what is added to the scores.
    # Keys up to which it gains. Of a single key the fused kernel makes gradients of queries and keys that are almost
    # zero, where they are zero.
    longest_causal, longest = (512, 1) if matmul_dtype(query) == torch.float32 else (1024, 512)
    return key.shape[2] <= (longest_causal if is_causal else longest)


def blockwise_attention(
    query: Float[Tensor, "batch heads queries head_dim"],
    key: Float[Tensor, "batch kv_heads keys head_dim"],
    value: Float[Tensor, "batch kv_heads keys head_dim"],
    attn_mask: Tensor | None,
    is_causal: bool,
    scale: float,
) -> Float[Tensor, "batch heads queries head_dim"]:
    """Attention in autocast's dtype. It is differentiable once, in the mask too."""
    key, value = reference.repeat_kv(key, query), reference.repeat_kv(value, query)
    dtype = matmul_dtype(query)
    with autocast_disabled(query):
        operands = query.to(dtype), key.to(dtype), value.to(dtype)
        return _BlockwiseAttention.apply(*operands, attn_mask, scale, is_causal)  # pyright: ignore[reportReturnType]


class _BlockwiseAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: FunctionCtx, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float, causal: bool
    ) -> Tensor:
        query = query * scale
        keys, out, weights = key.transpose(2, 3), torch.empty_like(query), list[Tensor]()
        for start in range(0, query.shape[2], _QUERY_BLOCK):
            block = query[:, :, start : start + _QUERY_BLOCK]
            end = start + block.shape[2]
            visible = end if causal else key.shape[2]
            scores = block @ keys[..., :visible]
            if causal:
                future = torch.ones(block.shape[2], block.shape[2], dtype=torch.bool).triu(1)
                scores[..., start:].masked_fill_(future, -torch.inf)
            if mask is not None:
                part = _rows(mask, start, end)
                scores = scores.masked_fill_(~part, -torch.inf) if part.dtype == torch.bool else scores.add_(part)
            weights.append(scores.softmax(dim=-1))
            out[:, :, start:end] = weights[-1] @ value[:, :, :visible]
        ctx.save_for_backward(query, key, value, *weights)
        ctx.scale = scale  # pyright: ignore[reportAttributeAccessIssue]
        ctx.bias = mask if ctx.needs_input_grad[3] else None  # pyright: ignore[reportAttributeAccessIssue]
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        query, key, value, *blocks = ctx.saved_tensors
        values = value.transpose(2, 3)
        grad_query, grad_key, grad_value = torch.empty_like(query), torch.zeros_like(key), torch.zeros_like(value)
        grad_bias = None if ctx.bias is None else torch.zeros_like(ctx.bias)
        for start, weights in zip(range(0, query.shape[2], _QUERY_BLOCK), blocks, strict=True):
            end, visible = start + weights.shape[2], weights.shape[3]
            grad = grad_outputs[0][:, :, start:end]
            grad_weights = grad @ values[..., :visible]
            grad_scores = torch.ops.aten._softmax_backward_data(grad_weights, weights, -1, weights.dtype)
            grad_query[:, :, start:end] = grad_scores @ key[:, :, :visible]
            grad_key[:, :, :visible] += grad_scores.transpose(2, 3) @ query[:, :, start:end]
            grad_value[:, :, :visible] += weights.transpose(2, 3) @ grad
            if grad_bias is not None:
                part = _rows(grad_bias, start, end)
                part += grad_scores.sum_to_size(part.shape)
        return grad_query * ctx.scale, grad_key, grad_value, grad_bias, None, None


def _rows(mask: Tensor, start: int, end: int) -> Tensor:
    """The mask of some of the queries, where it isn't the same for all."""
    return mask if mask.shape[2] == 1 else mask[:, :, start:end]
