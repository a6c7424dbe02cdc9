"""Which queries see which keys."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from anyformer.kernels import Mask


def attention_mask(
    queries: Int[Tensor, "#batch queries"],
    keys: Int[Tensor, "#batch keys"],
    *,
    causal: bool,
    window: int | None = None,
    padding_mask: Bool[Tensor, "batch keys"] | None = None,
    bias: Float[Tensor, "#batch heads queries keys"] | None = None,
    documents: Int[Tensor, "batch keys"] | None = None,
) -> Mask:
    """The mask between queries and keys at these positions in the sequence.

    Args:
        queries: Positions of the queries. Without `padding_mask` they are the last of the keys.
        keys: Positions of the keys.
        causal: Hide the keys after a query.
        window: A query sees this many keys, its own included (Mistral 7B, section 2); on both sides if not causal.
        padding_mask: False hides a key.
        bias: A relative position bias to be added to the scores.
        documents: The document that each key belongs to, whose tokens see no others. Queries and keys are the same.

    A query that would see nothing sees its own key, even if that is padding: the softmax of nothing would be NaN.
    """
    if window is not None and keys.shape[1] <= window:
        window = None
    # A single query, the newest, sees every key.
    if causal and queries.shape[1] == 1 and window is None:
        causal = False
    plain = padding_mask is None and window is None and bias is None and documents is None
    if plain and (not causal or queries.shape[1] == keys.shape[1]):
        return Mask(causal=causal)
    distance = queries[:, :, None] - keys[:, None, :]
    visible = torch.ones_like(distance, dtype=torch.bool)
    if causal:
        visible = distance >= 0
    if window is not None:
        visible = visible & (distance.abs() < window)
    if documents is not None:
        visible = visible & (documents[:, :, None] == documents[:, None, :])
    if padding_mask is not None:
        visible = visible & padding_mask[:, None, :]
        visible = visible | (distance == 0) & ~visible.any(dim=-1, keepdim=True)
    visible = visible[:, None]
    return Mask(visible if bias is None else bias.masked_fill(~visible, -torch.inf))
