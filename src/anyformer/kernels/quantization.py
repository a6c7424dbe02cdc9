"""Quantization of a matrix to integers of 8 or 4 bits, with a scale for every 32 neighbors in a row.

Sources: the groups and their order are those of llama.cpp's Q8_0 and Q4_1 (ggml-quants.c).
"""

from collections.abc import Callable, Iterator
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Float16, Int8, UInt8
from torch import Tensor

from anyformer.kernels.cpu import structs
from anyformer.kernels.cpu.library import Kernel

Quantization = Literal["int8", "int4"]

KERNEL = Kernel("quantize_int4", structs.QuantizeArgs, "quantization to int4")
GROUP = 32
"""Neighbors in a row that share a scale."""
_HALF = GROUP // 2
_LARGEST = 32_000.0
"""The scales and minima are float16, which ends at 65,504, and the ends of a group may be this far apart twice."""
_CHUNK = 1 << 20
"""Weights that are quantized at a time: the search for a scale needs several times their memory."""


class QuantizedWeight(NamedTuple):
    """A matrix in integers: ``weight = scale * integer + minimum``."""

    integers: Int8[Tensor, "rows columns"] | UInt8[Tensor, "rows half"]
    """8 bits: int8 [rows, columns]. 4 bits: uint8 [rows, columns / 2], where byte j of a group holds the weight of
    column j in its low bits and that of column j + 16 in its high ones."""
    scales: Float16[Tensor, "rows groups"]
    """[rows, columns / 32]."""
    minima: Float16[Tensor, "rows groups"] | None
    """[rows, columns / 32] of 4 bits; None of 8, where all are 0."""

    @property
    def shape(self) -> torch.Size:
        """[rows, columns] of the matrix."""
        if self.bits == 8:
            return self.integers.shape
        rows, groups = self.scales.shape
        return torch.Size((rows, groups * GROUP))

    @property
    def bits(self) -> int:
        """8 or 4."""
        return 8 if self.minima is None else 4

    def to(self, device: torch.device | str | None) -> "QuantizedWeight":
        """The weight on a device."""
        minima = None if self.minima is None else self.minima.to(device)
        return QuantizedWeight(self.integers.to(device), self.scales.to(device), minima)


def pack_int4(codes: UInt8[Tensor, "rows columns"]) -> UInt8[Tensor, "rows half"]:
    """Codes of 0 to 15, two a byte."""
    groups = codes.unflatten(1, (-1, 2, _HALF))
    return (groups[:, :, 0] | groups[:, :, 1] << 4).flatten(1)


def dequantize(weight: QuantizedWeight, dtype: torch.dtype) -> Float[Tensor, "rows columns"]:
    """The matrix in floating point: computed in float32, and rounded to `dtype` once."""
    scales = weight.scales.float()[..., None]
    if weight.minima is None:
        codes = weight.integers.unflatten(1, (-1, GROUP))
        return (codes.float() * scales).to(dtype).flatten(1)
    minima, groups = weight.minima.float()[..., None], weight.integers.unflatten(1, (-1, _HALF))
    matrix = torch.empty(*groups.shape[:2], GROUP, dtype=dtype, device=groups.device)
    matrix[..., :_HALF] = torch.addcmul(minima, (groups & 15).float(), scales)
    matrix[..., _HALF:] = torch.addcmul(minima, (groups >> 4).float(), scales)
    return matrix.flatten(1)


def can_quantize(rows: int, columns: int) -> bool:
    """Whether a matrix is made of whole groups, and is large enough to gain by it."""
    return columns % GROUP == 0 and rows >= GROUP


def quantize_int8(matrix: Float[Tensor, "rows columns"]) -> QuantizedWeight:
    """To -127 ... 127 by the largest absolute value of each group.

    Raises ValueError for numbers that are not finite, or too large for the scales.
    """
    groups = matrix.shape[1] // GROUP
    integers = torch.empty(matrix.shape, dtype=torch.int8, device=matrix.device)
    scales = torch.empty(len(matrix), groups, dtype=torch.float16, device=matrix.device)
    start = 0
    for part in _chunks(matrix):
        end = start + len(part)
        integers[start:end], scales[start:end] = _int8(part)
        start = end
    return QuantizedWeight(integers, scales, None)


def quantize_int4(matrix: Float[Tensor, "rows columns"]) -> QuantizedWeight:
    """To 0 ... 15 by a scale and a minimum for each group: those of the least squared error among some that are tried.

    Raises ValueError as `quantize_int8`.
    """
    return QuantizedWeight(*map(torch.cat, zip(*map(_int4, _chunks(matrix)), strict=True)))


QUANTIZERS: dict[Quantization, Callable[[Tensor], QuantizedWeight]] = {"int8": quantize_int8, "int4": quantize_int4}


def _chunks(matrix: Tensor) -> Iterator[Tensor]:
    rows = max(1, _CHUNK // max(1, matrix.shape[1]))
    for part in matrix.split(rows):
        # A NaN is not below the bound either.
        if part.numel() and not float(part.abs().max()) < _LARGEST:
            raise ValueError("has numbers that are not finite or too large")
        yield part.float().unflatten(1, (-1, GROUP))


def _int8(groups: Float[Tensor, "rows groups 32"]) -> tuple[Tensor, Tensor]:
    scales = (groups.abs().amax(dim=-1) / 127).half()
    integers = (groups * _inverse(scales.float())[..., None]).round().clamp(-127, 127)
    return integers.to(torch.int8).flatten(1), scales


_FRACTIONS = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75)
"""Scales that are tried, as fractions of that which spans the whole group."""
_REFITS = 2
"""Least-squares fits of scale and minimum to the codes of each."""


def _int4(groups: Float[Tensor, "rows groups 32"]) -> tuple[Tensor, Tensor, Tensor]:
    if groups.is_cpu and KERNEL.supported():
        return _compiled_int4(groups.contiguous())
    lowest, highest = groups.aminmax(dim=-1)
    middle, span = (lowest + highest) / 2, (highest - lowest) / 15
    scales, minima, least = span, lowest, torch.full_like(span, torch.inf)
    for fraction in _FRACTIONS:
        scale, minimum = _half(span * fraction), _half(middle - span * fraction * 7.5)
        codes = _codes(groups, scale, minimum)
        for refit in range(_REFITS + 1):
            if refit:
                scale, minimum = _fit(groups, codes, scale)
                codes = _codes(groups, scale, minimum)
            error = torch.addcmul(minimum[..., None], codes, scale[..., None]).sub_(groups).square_().sum(dim=-1)
            better = error < least
            least = torch.where(better, error, least)
            scales, minima = torch.where(better, scale, scales), torch.where(better, minimum, minima)
    codes = _codes(groups, scales, minima).to(torch.uint8)
    return pack_int4(codes.flatten(1)), scales.half(), minima.half()


def _compiled_int4(groups: Float[Tensor, "rows groups 32"]) -> tuple[Tensor, Tensor, Tensor]:
    rows, columns = groups.shape[:2]
    integers = torch.empty(rows, columns * _HALF, dtype=torch.uint8)
    scales, minima = (torch.empty(rows, columns, dtype=torch.float16) for _ in range(2))
    KERNEL.run(weights=groups, integers=integers, scales=scales, minima=minima, groups=rows * columns)
    return integers, scales, minima


def _fit(groups: Tensor, codes: Tensor, scales: Tensor) -> tuple[Tensor, Tensor]:
    """The scale and minimum of least squared error for these codes."""
    mean, level = codes.mean(dim=-1), groups.mean(dim=-1)
    spread = codes - mean[..., None]
    square = spread.square().sum(dim=-1)
    slope = spread.mul_(groups).sum(dim=-1) * _inverse(square)
    scale = _half(torch.where(square > 0, slope, scales))
    return scale, _half(level - scale * mean)


def _codes(groups: Tensor, scales: Tensor, minima: Tensor) -> Tensor:
    return (groups - minima[..., None]).mul_(_inverse(scales)[..., None]).round_().clamp_(0, 15)


def _half(x: Tensor) -> Tensor:
    """Round to what will be stored, so that the search sees what that costs."""
    return x.half().float()


def _inverse(x: Tensor) -> Tensor:
    """1 / x, and 0 of 0."""
    return torch.where(x == 0, 0, 1 / x)
