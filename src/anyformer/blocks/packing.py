"""Batches without their padding: all but attention computes each token by itself."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Int, Shaped
from torch import Tensor


class Packing(NamedTuple):
    """Where the tokens of a padded batch stand, which is packed into one row without padding for all but attention.

    Krell et al. 2021 and Portes et al. 2023 (MosaicBERT's "unpadding") train so. ``Packing()`` is that of a batch
    without padding: it changes nothing.
    """

    places: Int[Tensor, " tokens"] | None = None
    """Of each token in the flattened batch."""
    tokens: Int[Tensor, "batch time"] | None = None
    """The number of the token in each place; in that of padding, of another token."""

    @classmethod
    def of(cls, mask: Bool[Tensor, "batch time"]) -> "Packing":
        """The packing of a batch with this mask."""
        real = mask.flatten()
        return cls(real.nonzero().squeeze(1), (real.cumsum(dim=0) - 1).clamp(min=0).view_as(mask))

    def pack(self, x: Shaped[Tensor, "batch time *features"]) -> Shaped[Tensor, "#batch tokens *features"]:
        """The tokens alone, [1, tokens, ...]."""
        return x if self.places is None else x.flatten(0, 1).index_select(0, self.places)[None]

    def unpack(self, x: Shaped[Tensor, "#batch tokens *features"]) -> Shaped[Tensor, "batch time *features"]:
        """The tokens in their places; what is in the places of padding is undefined."""
        if self.tokens is None:
            return x
        return x[0].index_select(0, self.tokens.flatten()).unflatten(0, self.tokens.shape)

    def unpack_heads(self, x: Shaped[Tensor, "#batch heads tokens dim"]) -> Shaped[Tensor, "#batch heads time dim"]:
        """As `unpack`, of queries, keys or values."""
        return x if self.tokens is None else self.unpack(x.transpose(1, 2)).transpose(1, 2)

    def select(self, index: Int[Tensor, " batch"]) -> Int[Tensor, " batch"]:
        """The index, among the packed tokens, of one position of each sequence."""
        if self.tokens is None:
            return index
        return self.tokens[torch.arange(len(index), device=index.device), index]


UNPADDED = Packing()
