"""Who may look at whom."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


class Mask(NamedTuple):
    """What attention needs to know, in the form that lets it take the fastest path.

    ``Mask()`` hides nothing, ``Mask(causal=True)`` hides the future with no tensor at all; otherwise `scores` is
    either True where a query may look at a key, or what is added to its score (-inf where it may not).
    """

    scores: Bool[Tensor, "#batch #heads queries keys"] | Float[Tensor, "#batch #heads queries keys"] | None = None
    causal: bool = False


def attention_mask(
    queries: Int[Tensor, "#batch queries"],
    keys: Int[Tensor, "#batch keys"],
    *,
    causal: bool,
    window: int | None = None,
    real: Bool[Tensor, "batch keys"] | None = None,
    bias: Float[Tensor, "#batch heads queries keys"] | None = None,
    documents: Int[Tensor, "batch keys"] | None = None,
) -> Mask:
    """The mask between queries and keys at these places in the text.

    Args:
        queries: Where the queries stand. Without `real` they are the last of the keys.
        keys: Where the keys stand.
        causal: Hide the keys after a query.
        window: A query sees this many keys, its own included (Mistral 7B, section 2); on both sides if not causal.
        real: False hides a padding key.
        bias: A relative position bias to be added to the scores.
        documents: The document that each key belongs to, whose tokens see no others. Queries and keys are the same.

    Every query keeps sight of its own key, even if that is padding: the softmax of nothing would be NaN.
    """
    asked, known = queries.shape[1], keys.shape[1]
    if window is not None and known <= window:
        window = None
    # One query, the newest, looks back on everything: nothing is hidden from it.
    if causal and asked == 1 and window is None:
        causal = False
    plain = real is None and window is None and bias is None and documents is None
    if plain and (not causal or asked == known):
        return Mask(causal=causal)
    distance = queries[:, :, None] - keys[:, None, :]
    visible = torch.ones_like(distance, dtype=torch.bool)
    if causal:
        visible = distance >= 0
    if window is not None:
        visible = visible & (distance.abs() < window)
    if documents is not None:
        visible = visible & (documents[:, :, None] == documents[:, None, :])
    if real is not None:
        visible = visible & real[:, None, :] | (distance == 0)
    visible = visible[:, None]
    return Mask(visible if bias is None else bias.masked_fill(~visible, -torch.inf))
