"""Scaled dot-product attention: torch's fused kernel, or compiled code on a CPU. Rows may be packed."""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from anyformer.kernels import reference
from anyformer.kernels.autocast import autocast_disabled, autocasts, matmul_dtype
from anyformer.kernels.cpu import attention as cpu
from anyformer.kernels.dropout import draw, head_counters, is_counted
from anyformer.kernels.layout import DENSE, Layout

_FEW_QUERIES = 8
"""Queries below which torch's attention is faster without gradients: compiled code computes sixteen at a time."""
_MAX_BIAS = 1 << 24
"""Elements that a mask may have once it is expanded to all queries, which torch does not do, without gradients."""


def attention(
    query: Float[Tensor, "batch heads queries head_dim"],
    key: Float[Tensor, "batch kv_heads keys head_dim"],
    value: Float[Tensor, "batch kv_heads keys value_dim"],
    attn_mask: Bool[Tensor, "#batch #heads #queries keys"] | Float[Tensor, "#batch #heads #queries keys"] | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    softcap: float | None = None,
    sinks: Float[Tensor, " heads"] | None = None,
) -> Float[Tensor, "batch heads queries value_dim"]:
    """``dropout(softmax(scale q k^T + mask)) v``, as `torch.nn.functional.scaled_dot_product_attention`.

    Where there are fewer key/value heads than query heads, each is shared by a group of them. Compiled code is
    differentiable once.

    Args:
        attn_mask: True where a query sees a key, or what is added to its score.
        dropout_p: Probability of dropping a weight.
        is_causal: Queries see only keys up to their own position; there are as many queries as keys.
        scale: Of the scores; None: ``1 / sqrt(head_dim)``.
        softcap: Bound on the scores, ``softcap * tanh(scores / softcap)``, which no fused kernel here has.
        sinks: One more score for each head, whose weight is left out; no fused kernel here has it either.
    """
    if softcap is not None or sinks is not None:
        return reference.attention(query, key, value, attn_mask, dropout_p, is_causal, scale, softcap, sinks)
    scale = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    dtype = matmul_dtype(query)
    if _shapes_agree(query, key, value, attn_mask, is_causal) and _is_compiled(query, attn_mask, dtype, dropout_p):
        bias = None if attn_mask is None else _by_key(attn_mask, query.shape[2], cpu.query_block(dtype, dropout_p))
        operands = query.to(dtype), key.to(dtype), value.to(dtype)
        key_and_counters = (draw(), head_counters(query)) if dropout_p > 0.0 else (None, None)
        with autocast_disabled(query):
            out, _ = cpu.forward(*operands, bias, scale, is_causal, dropout_p, *key_and_counters)
        return out
    # On CPUs torch's fused kernel has neither dropout nor a gradient of what is added to the scores.
    is_learned = query.is_cpu and attn_mask is not None and attn_mask.requires_grad
    if is_learned or (dropout_p > 0.0 and (query.is_cpu or is_counted(query.device))):
        return reference.attention(query, key, value, attn_mask, dropout_p, is_causal, scale)
    if autocasts(query):  # not that of every device knows the function
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
        if attn_mask is not None and attn_mask.is_floating_point():
            attn_mask = attn_mask.to(dtype)
    arguments = query, key, value, attn_mask, dropout_p, is_causal
    return F.scaled_dot_product_attention(*arguments, scale=scale, enable_gqa=query.shape[1] != key.shape[1])


def _shapes_agree(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None, is_causal: bool) -> bool:
    """Whether only the mask has to be broadcast, and nothing refused: torch does that."""
    (batch, heads, queries, head_dim), (kv_heads, keys) = query.shape, key.shape[1:3]
    if not key.shape == value.shape == (batch, kv_heads, keys, head_dim) or heads % kv_heads:
        return False
    if attn_mask is not None:
        sizes = zip(attn_mask.shape, (batch, heads, queries), strict=False)
        if attn_mask.dim() != 4 or attn_mask.shape[3] != keys or any(size not in (1, full) for size, full in sizes):
            return False
    return queries == keys or not is_causal


def _is_compiled(query: Tensor, attn_mask: Tensor | None, dtype: torch.dtype, dropout_p: float) -> bool:
    if not query.requires_grad and dropout_p == 0.0:
        bias = 0 if attn_mask is None else math.prod(attn_mask.shape[:2]) * attn_mask.shape[3] * query.shape[2]
        if query.shape[2] < _FEW_QUERIES or bias > _MAX_BIAS:
            return False
    if torch.compiler.is_compiling() and dropout_p > 0.0:
        return False
    if attn_mask is not None and attn_mask.requires_grad and attn_mask.shape[1:3] != query.shape[1:3]:
        return False
    return cpu.supports(query, dtype, dropout_p)


def _by_key(attn_mask: Tensor, queries: int, block: int) -> Float[Tensor, "#batch #heads keys padded_queries"]:
    """The mask as numbers added to the scores, transposed, with the queries padded to whole blocks."""
    if attn_mask.dtype == torch.bool:
        attn_mask = torch.zeros(attn_mask.shape).masked_fill_(~attn_mask, -torch.inf)
    by_key = attn_mask.float().expand(-1, -1, queries, -1).transpose(2, 3)
    return (F.pad(by_key, (0, -queries % block)) if queries % block else by_key).contiguous()


class RelativeVectors(NamedTuple):
    """Vectors of relative positions that queries and keys are compared with as well (He et al. 2021, section 3.1)."""

    vectors: Float[Tensor, "1 distances d_model"]
    lookup: Int[Tensor, "#batch queries keys"]
    """Index of the one between each query and key."""
    dropout: float = 0.0
    """Probability of dropping a number of them."""

    def select(self, index: Int[Tensor, " batch"]) -> "RelativeVectors":
        """The vectors between one query of each sequence, by its position, and all keys."""
        rows = torch.arange(len(self.lookup), device=index.device)
        return self._replace(lookup=self.lookup[rows, index][:, None])


class Mask(NamedTuple):
    """A mask in the form that lets attention take the fastest path.

    ``Mask()`` hides nothing, ``Mask(causal=True)`` hides the future with no tensor at all; otherwise `scores` is
    either True where a query sees a key, or what is added to its score (-inf where it doesn't).
    """

    scores: Bool[Tensor, "#batch #heads queries keys"] | Float[Tensor, "#batch #heads queries keys"] | None = None
    causal: bool = False
    relative: RelativeVectors | None = None
    """Vectors that disentangled attention makes more scores of, see `with_relative`."""


class PackedMask(NamedTuple):
    """A mask of all tokens of a batch, whose queries and keys come in these layouts."""

    mask: Mask
    queries: Layout = DENSE
    keys: Layout = DENSE

    @property
    def relative(self) -> RelativeVectors | None:
        """As of the mask."""
        return self.mask.relative


AttentionMask = Mask | PackedMask


def masked_attention(
    query: Float[Tensor, "#batch heads queries head_dim"],
    key: Float[Tensor, "#batch kv_heads keys head_dim"],
    value: Float[Tensor, "#batch kv_heads keys value_dim"],
    mask: AttentionMask,
    dropout_p: float = 0.0,
    scale: float | None = None,
    softcap: float | None = None,
    sinks: Float[Tensor, " heads"] | None = None,
) -> Float[Tensor, "#batch heads queries value_dim"]:
    """``dropout(softmax(scale q k^T + mask)) v``: `kernels.attention`, packed as the queries are."""
    if isinstance(mask, Mask):
        return attention(query, key, value, mask.scores, dropout_p, mask.causal, scale, softcap, sinks)
    dense, queries, keys = mask
    operands = queries.scatter_heads(query), keys.scatter_heads(key), keys.scatter_heads(value)
    out = attention(*operands, dense.scores, dropout_p, dense.causal, scale, softcap, sinks)
    return queries.gather(out.transpose(1, 2)).transpose(1, 2)


def masked_attention_weights(
    query: Float[Tensor, "#batch heads queries head_dim"],
    key: Float[Tensor, "#batch kv_heads keys head_dim"],
    mask: AttentionMask,
    scale: float | None = None,
    softcap: float | None = None,
    sinks: Float[Tensor, " heads"] | None = None,
) -> Float[Tensor, "batch heads queries keys"]:
    """``softmax(scale q k^T + mask)`` of all tokens of the batch; every row sums to 1, or to less with sinks."""
    if isinstance(mask, PackedMask):
        query, key, mask = mask.queries.scatter_heads(query), mask.keys.scatter_heads(key), mask.mask
    return reference.attention_weights(query, key, mask.scores, mask.causal, scale, softcap, sinks)


def with_layouts(mask: Mask, queries: Layout, keys: Layout = DENSE) -> AttentionMask:
    """The mask between queries and keys that come in these layouts."""
    return mask if queries.indices is None and keys.indices is None else PackedMask(mask, queries, keys)


def with_relative(
    mask: AttentionMask,
    of_queries: Float[Tensor, "#batch heads queries distances"],
    of_keys: Float[Tensor, "#batch heads keys distances"],
) -> AttentionMask:
    """The mask with the scores ``of_queries[i, d] + of_keys[j, d]`` between query i and key j, of which d is the index
    of their relative vector."""
    dense, queries, keys = mask if isinstance(mask, PackedMask) else PackedMask(mask)
    assert dense.relative is not None
    of_queries, of_keys = queries.scatter_heads(of_queries), keys.scatter_heads(of_keys)
    index = dense.relative.lookup[:, None].expand(*of_queries.shape[:2], -1, -1)
    scores = of_queries.gather(3, index) + of_keys.transpose(2, 3).gather(2, index)
    scores = scores if dense.scores is None else scores.masked_fill(~dense.scores, -torch.inf)
    return PackedMask(Mask(scores), queries, keys)


def select_query(mask: Mask, index: Int[Tensor, " batch"], keys: int) -> Mask:
    """The mask of one query of each sequence, by its position, between it and so many keys."""
    scores, relative = mask.scores, mask.relative
    if scores is not None:
        scores = scores[torch.arange(len(scores), device=index.device), :, index][:, :, None]
    elif mask.causal:
        scores = (torch.arange(keys, device=index.device) <= index[:, None])[:, None, None]
    return Mask(scores, relative=relative and relative.select(index))
