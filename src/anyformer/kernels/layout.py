"""The layout of a batch: all of its tokens, or in one row those that are computed.

Everything but attention computes each token by itself, so padding, and a prefix that rows share, can be left out.
"""

from typing import NamedTuple, overload

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Int, Shaped
from torch import Tensor

_MOST_PACKED = 0.9
"""Largest share of a decoder's tokens that is packed: packing takes time as well."""


class Layout(NamedTuple):
    """Indices of the tokens of a batch that are packed into one row; ``Layout()`` is dense, and changes nothing."""

    indices: Int[Tensor, " tokens"] | None = None
    """Index of each packed token in the flattened batch."""
    packed: Int[Tensor, "batch time"] | None = None
    """Index of each token of the batch among the packed ones; of one that is left out, that of another token."""

    @classmethod
    def of(cls, mask: Bool[Tensor, "batch time"]) -> "Layout":
        """The layout of a batch without its padding, where the mask is False ("unpadding", Portes et al. 2023)."""
        real = mask.flatten()
        return cls(real.nonzero().squeeze(1), (real.cumsum(dim=0) - 1).clamp(min=0).view_as(mask))

    @classmethod
    def of_prefixes(cls, tokens: Int[Tensor, "batch time"], read: Bool[Tensor, "batch time"]) -> "Layout":
        """The layout of texts that a decoder reads, with a prefix that neighboring rows share only once.

        A decoder's output at a token depends on the tokens up to it alone: that of a system prompt, or of a question
        with several answers, is equal in all rows that begin with it. `read` is False for tokens that are left out, and
        for all that follow them.
        """
        shared = (tokens[1:] == tokens[:-1]).cumprod(dim=1).bool() & read[:-1]
        new = read & ~F.pad(shared, (0, 0, 1, 0))
        # A shared token is the latest one that is computed in the same column of a row above.
        numbers = (new.flatten().cumsum(dim=0) - 1).view_as(tokens)
        return cls(new.flatten().nonzero().squeeze(1), numbers.where(new, 0).cummax(dim=0)[0])

    @overload
    def gather(self, x: Shaped[Tensor, "batch time *features"]) -> Shaped[Tensor, "#batch tokens *features"]: ...
    @overload
    def gather(self, x: None) -> None: ...
    def gather(self, x: Tensor | None) -> Tensor | None:
        """The packed tokens, [1, tokens, ...]."""
        return x if x is None or self.indices is None else x.flatten(0, 1).index_select(0, self.indices)[None]

    def scatter(self, x: Shaped[Tensor, "#batch tokens *features"]) -> Shaped[Tensor, "batch time *features"]:
        """The packed tokens in the batch as it was; undefined for those that were left out."""
        if self.packed is None:
            return x
        return x[0].index_select(0, self.packed.flatten()).unflatten(0, self.packed.shape)

    def scatter_heads(self, x: Shaped[Tensor, "#batch heads tokens dim"]) -> Shaped[Tensor, "batch heads time dim"]:
        """`scatter` of queries, keys or values."""
        return x if self.packed is None else self.scatter(x.transpose(1, 2)).transpose(1, 2)

    def locate(self, index: Int[Tensor, " batch"]) -> Int[Tensor, " batch"]:
        """The index among the packed tokens of one position of each sequence."""
        if self.packed is None:
            return index
        return self.packed[torch.arange(len(index), device=index.device), index]


DENSE = Layout()


def choose_layout(
    tokens: Int[Tensor, "batch time"],
    mask: Bool[Tensor, "batch time"] | None,
    needed: Bool[Tensor, "batch time"] | None,
    *,
    causal: bool,
    share_prefixes: bool,
) -> Layout:
    """The layout in which a batch is computed; dense if nothing can be skipped.

    Args:
        mask: False for padding.
        needed: False where the output may be undefined; None: nowhere.
        causal: Whether no output depends on a token that follows.
        share_prefixes: Whether the output depends on the tokens alone, so that rows may share it.
    """
    if not skips_tokens(tokens.device):
        return DENSE
    if mask is not None:
        return Layout.of(mask) if 0 < int(mask.sum()) < mask.numel() else DENSE
    if not causal:
        return DENSE
    read = torch.ones_like(tokens, dtype=torch.bool) if needed is None else needed.flip(1).cummax(dim=1)[0].flip(1)
    layout = Layout.of_prefixes(tokens, read) if share_prefixes else Layout.of(read)
    count = 0 if layout.indices is None else len(layout.indices)
    return layout if 0 < count < _MOST_PACKED * tokens.numel() else DENSE


def skips_tokens(device: torch.device) -> bool:
    """Whether tokens are left out at all: an accelerator would wait until the host has read how many remain."""
    return device.type == "cpu" and not torch.compiler.is_compiling()
