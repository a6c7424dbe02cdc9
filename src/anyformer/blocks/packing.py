"""Batches without what need not be computed: all but attention computes each token by itself."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Int, Shaped
from torch import Tensor


class Packing(NamedTuple):
    """Where the tokens of a batch stand that are packed into one row for all but attention.

    ``Packing()`` is that of a batch all of whose places are computed: it changes nothing.
    """

    places: Int[Tensor, " tokens"] | None = None
    """Of each token in the flattened batch."""
    tokens: Int[Tensor, "batch time"] | None = None
    """The number of the token in each place; where nothing is computed, of another token."""

    @classmethod
    def of(cls, mask: Bool[Tensor, "batch time"]) -> "Packing":
        """The packing of a batch with this mask, without its padding.

        Krell et al. 2021 and Portes et al. 2023 (MosaicBERT's "unpadding") train so.
        """
        real = mask.flatten()
        return cls(real.nonzero().squeeze(1), (real.cumsum(dim=0) - 1).clamp(min=0).view_as(mask))

    @classmethod
    def of_prefixes(cls, tokens: Int[Tensor, "batch time"], read: Bool[Tensor, "batch time"]) -> "Packing":
        """The packing of texts that a decoder reads, with a prefix that neighboring rows share only once.

        What a decoder computes of a token depends on the tokens up to it alone: a system prompt, or a question with
        several answers, is the same in all rows that begin with it.

        Args:
            read: False for tokens that are left out; those that follow one are as well.
        """
        shared = (tokens[1:] == tokens[:-1]).cumprod(dim=1).bool() & read[:-1]
        new = read & ~F.pad(shared, (0, 0, 1, 0))
        # A shared token is the latest one that is computed in the same column of a row above.
        numbers = (new.flatten().cumsum(dim=0) - 1).view_as(tokens)
        return cls(new.flatten().nonzero().squeeze(1), numbers.where(new, 0).cummax(dim=0)[0])

    def pack(self, x: Shaped[Tensor, "batch time *features"]) -> Shaped[Tensor, "#batch tokens *features"]:
        """The tokens alone, [1, tokens, ...]."""
        return x if self.places is None else x.flatten(0, 1).index_select(0, self.places)[None]

    def unpack(self, x: Shaped[Tensor, "#batch tokens *features"]) -> Shaped[Tensor, "batch time *features"]:
        """The tokens in their places; what is in the places of those that were left out is undefined."""
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
