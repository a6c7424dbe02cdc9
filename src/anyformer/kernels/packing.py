"""Integers as compiled code reads them: sixteen rows side by side, in the order in which they are multiplied.

A tile is 16 rows, and a group 32 neighbors in each of them. Of 8 bits, byte ``[k, r, i]`` of a group is 128 more than
the integer of row r in place 4k + i; of 4 bits, it has that of place 4k + i in its low half and that of place
16 + 4k + i in its high one. So every byte is read once, in order, and four products of each row are one instruction.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float16, UInt8
from torch import Tensor

from anyformer.kernels.huge_pages import to_huge_pages
from anyformer.kernels.quantization import Rounded

TILE = 16
"""Rows side by side: as many as a vector register has float32 numbers."""
_QUAD = 4
_OFFSET = 128


class Tiles(NamedTuple):
    """A matrix in integers; what its rows lack to whole tiles is zeros."""

    integers: UInt8[Tensor, "tiles groups quads 16 4"]
    """8 quads of 8 bits, 4 of 4 bits."""
    scales: Float16[Tensor, "tiles groups 16"]
    minima: Float16[Tensor, "tiles groups 16"] | None
    """None of 8 bits, where all are 0."""


def tile(rounded: Rounded) -> Tiles:
    """Lay rows out in tiles: a copy."""
    scales, minima = (None if part is None else _lying(part) for part in rounded[1:])
    assert scales is not None
    rows, groups = rounded.scales.shape
    byte = rounded.integers.view(torch.uint8)
    if minima is None:
        byte = byte ^ _OFFSET
    whole = F.pad(byte, (0, 0, 0, -rows % TILE))
    quads = whole.view(-1, TILE, groups, whole.shape[1] // groups // _QUAD, _QUAD)
    return Tiles(to_huge_pages(quads.permute(0, 2, 3, 1, 4)), scales, minima)


def untile(tiles: Tiles, rows: int) -> Rounded:
    """The first rows of tiles, as they were."""
    integers = _standing(tiles.integers.permute(0, 3, 1, 2, 4), rows)
    scales, minima = (None if part is None else _standing(part.mT, rows) for part in tiles[1:])
    assert scales is not None
    return Rounded(_signed(integers, minima), scales, minima)


def pick(tiles: Tiles, rows: Tensor) -> Rounded:
    """Some rows of tiles, by their numbers [count]."""
    which, lane = rows // TILE, rows % TILE
    integers = tiles.integers[which, :, :, lane].flatten(1)
    scales, minima = (None if part is None else part[which, :, lane] for part in tiles[1:])
    assert scales is not None
    return Rounded(_signed(integers, minima), scales, minima)


def _lying(part: Tensor) -> Tensor:
    """[rows, groups] as [tiles, groups, 16]."""
    whole = F.pad(part, (0, 0, 0, -len(part) % TILE))
    return to_huge_pages(whole.view(-1, TILE, part.shape[1]).mT)


def _standing(part: Tensor, rows: int) -> Tensor:
    """[tiles, 16, ...] as [rows, ...]."""
    return part.reshape(part.shape[0] * TILE, -1)[:rows]


def _signed(integers: Tensor, minima: Tensor | None) -> Tensor:
    return (integers ^ _OFFSET).view(torch.int8) if minima is None else integers
