"""Rounding a matrix to integers of 8 or 4 bits, with a scale for every 32 neighbors in a row.

Sources: the groups and their order are those of llama.cpp's Q8_0 and Q4_1 (ggml-quants.c).
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from jaxtyping import Float, Float16, Int8, UInt8
from torch import Tensor

GROUP = 32
"""Neighbors in a row that share a scale."""
_HALF = GROUP // 2
_LARGEST = 32_000.0
"""The scales and minima are float16, which ends at 65,504, and the ends of a group may be this far apart twice."""
_AT_ONCE = 1 << 18
"""Weights that are rounded at a time: the search needs several times their room."""


class Rounded(NamedTuple):
    """A matrix in integers: ``weight = scale * integer + minimum``."""

    integers: Int8[Tensor, "rows columns"] | UInt8[Tensor, "rows half"]
    """8 bits: int8 [rows, columns]. 4 bits: uint8 [rows, columns / 2], where byte j of a group holds the weight of
    place j in its low bits and that of place j + 16 in its high ones."""
    scales: Float16[Tensor, "rows groups"]
    """[rows, columns / 32]."""
    minima: Float16[Tensor, "rows groups"] | None
    """[rows, columns / 32] of 4 bits; None of 8, where all are 0."""

    @property
    def shape(self) -> torch.Size:
        """[rows, columns] of the matrix."""
        rows, groups = self.scales.shape
        return torch.Size((rows, groups * GROUP))

    @property
    def bits(self) -> int:
        """8 or 4."""
        return 8 if self.minima is None else 4

    def to(self, device: torch.device | str | None) -> "Rounded":
        """The same on a device."""
        minima = None if self.minima is None else self.minima.to(device)
        return Rounded(self.integers.to(device), self.scales.to(device), minima)


def pack(codes: UInt8[Tensor, "rows columns"]) -> UInt8[Tensor, "rows half"]:
    """Codes of 0 to 15, two a byte."""
    groups = codes.unflatten(1, (-1, 2, _HALF))
    return (groups[:, :, 0] | groups[:, :, 1] << 4).flatten(1)


def unpack(packed: UInt8[Tensor, "rows half"]) -> UInt8[Tensor, "rows columns"]:
    """The codes of `pack`."""
    groups = packed.unflatten(1, (-1, _HALF))
    return torch.cat([groups & 15, groups >> 4], dim=2).flatten(1)


def round_int8(matrix: Float[Tensor, "rows columns"]) -> Rounded:
    """To -127 ... 127 by the largest absolute value of each group.

    Raises:
        ValueError: numbers that are not finite, or too large for the scales.
    """
    parts = list(map(_int8, _pieces(matrix)))
    return Rounded(torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts]), None)


def round_int4(matrix: Float[Tensor, "rows columns"]) -> Rounded:
    """To 0 ... 15 between each group's ends, then drawn in to where the squared error is least.

    Raises:
        ValueError: numbers that are not finite, or too large for the scales.
    """
    parts = map(_int4, _pieces(matrix))
    integers, scales, minima = (torch.cat(column) for column in zip(*parts, strict=True))
    return Rounded(integers, scales, minima)


def _pieces(matrix: Tensor) -> Iterator[Tensor]:
    rows = max(1, _AT_ONCE // max(1, matrix.shape[1]))
    for part in matrix.split(rows):
        # A NaN is not below the bound either.
        if part.numel() and not float(part.abs().max()) < _LARGEST:
            raise ValueError("has numbers that are not finite or too large")
        yield part.float().unflatten(1, (-1, GROUP))


def _int8(groups: Float[Tensor, "rows groups 32"]) -> tuple[Tensor, Tensor]:
    scales = (groups.abs().amax(dim=-1) / 127).half()
    integers = (groups * _inverse(scales.float())[..., None]).round().clamp(-127, 127)
    return integers.to(torch.int8).flatten(1), scales


_SHARES = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75)
"""Scales that are tried, as shares of that which reaches from one end of a group to the other,"""
_FITS = 2
"""and how often a line is fitted to the codes of each."""


def _int4(groups: Float[Tensor, "rows groups 32"]) -> tuple[Tensor, Tensor, Tensor]:
    lowest, highest = groups.aminmax(dim=-1)
    middle, span = (lowest + highest) / 2, (highest - lowest) / 15
    scales, minima, least = span, lowest, torch.full_like(span, torch.inf)
    for share in _SHARES:
        scale, minimum = _half(span * share), _half(middle - span * share * 7.5)
        codes = _codes(groups, scale, minimum)
        for fitted in range(_FITS + 1):
            if fitted:
                scale, minimum = _fit(groups, codes, scale)
                codes = _codes(groups, scale, minimum)
            error = torch.addcmul(minimum[..., None], codes, scale[..., None]).sub_(groups).square_().sum(dim=-1)
            wins = error < least
            least = torch.where(wins, error, least)
            scales, minima = torch.where(wins, scale, scales), torch.where(wins, minimum, minima)
    codes = _codes(groups, scales, minima).to(torch.uint8)
    return pack(codes.flatten(1)), scales.half(), minima.half()


def _fit(groups: Tensor, codes: Tensor, scales: Tensor) -> tuple[Tensor, Tensor]:
    """The line of least squares from these codes to the weights."""
    mean, level = codes.mean(dim=-1), groups.mean(dim=-1)
    spread = codes - mean[..., None]
    square = spread.square().sum(dim=-1)
    slope = spread.mul_(groups).sum(dim=-1) * _inverse(square)
    scale = _half(torch.where(square > 0, slope, scales))
    return scale, _half(level - scale * mean)


def _codes(groups: Tensor, scales: Tensor, minima: Tensor) -> Tensor:
    return (groups - minima[..., None]).mul_(_inverse(scales)[..., None]).round_().clamp_(0, 15)


def _half(x: Tensor) -> Tensor:
    """As it will be stored, so that the search sees what that costs."""
    return x.half().float()


def _inverse(x: Tensor) -> Tensor:
    """1 / x, and 0 of 0."""
    return torch.where(x == 0, 0, 1 / x)
