"""Which queries see which keys."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from anyformer.blocks.packing import UNPADDED, Packing
from anyformer.blocks.pooling import select


class Mask(NamedTuple):
    """A mask in the form that lets attention take the fastest path.

    ``Mask()`` hides nothing, ``Mask(causal=True)`` hides the future with no tensor at all; otherwise `scores` is
    either True where a query sees a key, or what is added to its score (-inf where it doesn't).
    """

    scores: Bool[Tensor, "#batch #heads queries keys"] | Float[Tensor, "#batch #heads queries keys"] | None = None
    causal: bool = False
    packing: Packing = UNPADDED
    """How the queries are packed."""
    selected: Int[Tensor, " batch"] | None = None
    """The one query of each sequence, by its place in what is packed; None: all of them."""

    def select(self, index: Int[Tensor, " batch"], keys: int) -> "Mask":
        """The mask of one query of each sequence between it and so many keys."""
        scores = self.scores
        if scores is not None:
            scores = select(scores.transpose(1, 2), index).transpose(1, 2)
        elif self.causal:
            scores = (torch.arange(keys, device=index.device) <= index[:, None])[:, None, None]
        return Mask(scores, packing=self.packing, selected=self.packing.select(index))


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

    Every query sees its own key, even if that is padding: the softmax of nothing would be NaN.
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
        visible = visible & padding_mask[:, None, :] | (distance == 0)
    visible = visible[:, None]
    return Mask(visible if bias is None else bias.masked_fill(~visible, -torch.inf))
