"""Attention under a mask, of queries and keys that are packed or not."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from anyformer.kernels import reference
from anyformer.kernels.attention import attention
from anyformer.kernels.layout import DENSE, Layout


class Mask(NamedTuple):
    """A mask in the form that lets attention take the fastest path.

    ``Mask()`` hides nothing, ``Mask(causal=True)`` hides the future with no tensor at all; otherwise `scores` is
    either True where a query sees a key, or what is added to its score (-inf where it doesn't).
    """

    scores: Bool[Tensor, "#batch #heads queries keys"] | Float[Tensor, "#batch #heads queries keys"] | None = None
    causal: bool = False


class PackedMask(NamedTuple):
    """A mask between queries and keys that come in these layouts; `scores` is that of all their places."""

    scores: Bool[Tensor, "#batch #heads queries keys"] | Float[Tensor, "#batch #heads queries keys"] | None = None
    causal: bool = False
    queries: Layout = DENSE
    keys: Layout = DENSE


AttentionMask = Mask | PackedMask


def masked_attention(
    query: Float[Tensor, "#batch heads queries head_dim"],
    key: Float[Tensor, "#batch kv_heads keys head_dim"],
    value: Float[Tensor, "#batch kv_heads keys head_dim"],
    mask: AttentionMask,
    dropout_p: float = 0.0,
    scale: float | None = None,
) -> Float[Tensor, "#batch heads queries head_dim"]:
    """``dropout(softmax(scale q k^T + mask)) v``: `kernels.attention`, packed as the queries are."""
    if isinstance(mask, Mask):
        return attention(query, key, value, mask.scores, dropout_p, mask.causal, scale)
    query, key, value = mask.queries.scatter_heads(query), mask.keys.scatter_heads(key), mask.keys.scatter_heads(value)
    out = attention(query, key, value, mask.scores, dropout_p, mask.causal, scale)
    return mask.queries.gather(out.transpose(1, 2)).transpose(1, 2)


def masked_attention_weights(
    query: Float[Tensor, "#batch heads queries head_dim"],
    key: Float[Tensor, "#batch kv_heads keys head_dim"],
    mask: AttentionMask,
    scale: float | None = None,
) -> Float[Tensor, "batch heads queries keys"]:
    """``softmax(scale q k^T + mask)`` at all places of the batch; every row sums to 1."""
    if isinstance(mask, PackedMask):
        query, key = mask.queries.scatter_heads(query), mask.keys.scatter_heads(key)
    return reference.attention_weights(query, key, mask.scores, mask.causal, scale)


def with_layouts(mask: Mask, queries: Layout, keys: Layout = DENSE) -> AttentionMask:
    """The mask between queries and keys that come in these layouts."""
    return mask if queries.indices is None and keys.indices is None else PackedMask(*mask, queries, keys)


def select_query(mask: AttentionMask, index: Int[Tensor, " batch"], keys: int) -> AttentionMask:
    """The mask of one query of each sequence, by its position, between it and so many keys."""
    scores = mask.scores
    if scores is not None:
        scores = scores[torch.arange(len(scores), device=index.device), :, index][:, :, None]
    elif mask.causal:
        scores = (torch.arange(keys, device=index.device) <= index[:, None])[:, None, None]
    return Mask(scores) if isinstance(mask, Mask) else PackedMask(scores, keys=mask.keys)
