"""Matrices whose weights are integers of 8 or 4 bits: a linear layer, and a table of vectors.

They take an eighth to a quarter of float32's memory. What comes in and goes out has the format of the activations.
"""

from collections.abc import Callable
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from anyformer.kernels.cpu.quantized_matmul import can_multiply, multiply
from anyformer.kernels.packing import TILE, Tiles, pick, tile, untile
from anyformer.kernels.quantization import GROUP, Rounded, round_int4, round_int8

Quantization = Literal["int8", "int4"]
ROUNDINGS: dict[Quantization, Callable[[Tensor], Rounded]] = {"int8": round_int8, "int4": round_int4}
_AT_ONCE = 1 << 18
"""Weights that are multiplied out at a time: they stay in the cache of a core until they are used."""


class QuantizedMatrix(nn.Module):
    """A matrix in integers, with a scale for every 32 neighbors in a row (see `rounding.Rounded`).

    Args:
        rounded: The integers, scales and minima.
        dtype: The format of the activations.
    """

    integers: Tensor
    scales: Tensor
    minima: Tensor | None
    activations: Tensor
    """Holds nothing; it has the format of the activations, and changes it as parameters do."""

    def __init__(self, rounded: Rounded, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        rows, groups = rounded.scales.shape
        self.shape = torch.Size((rows, groups * GROUP))
        for name, part in tile(rounded)._asdict().items():
            self.register_buffer(name, part, persistent=False)
        empty = torch.empty(0, dtype=dtype, device=rounded.integers.device)
        self.register_buffer("activations", empty, persistent=False)

    @property
    def bits(self) -> int:
        """8 or 4."""
        return 8 if self.minima is None else 4

    @property
    def dtype(self) -> torch.dtype:
        """The format of the activations."""
        return self.activations.dtype

    @property
    def device(self) -> torch.device:
        """Where it is."""
        return self.integers.device

    @property
    def tiles(self) -> Tiles:
        """What it is made of, as it lies in memory."""
        return Tiles(self.integers, self.scales, self.minima)

    @property
    def rounded(self) -> Rounded:
        """What it is made of, as it is saved: a copy."""
        return untile(self.tiles, self.shape[0])

    def dequantized(self, dtype: torch.dtype | None = None) -> Float[Tensor, "rows columns"]:
        """The matrix in floating point; None: in the format of the activations."""
        return dequantize(self.rounded, dtype or self.dtype)

    def multiply(
        self, x: Float[Tensor, "*batch columns"], bias: Float[Tensor, " rows"] | None = None
    ) -> Float[Tensor, "*batch rows"]:
        """``x @ matrix.T + bias``, in the format of x.

        In compiled code x is rounded to 8 bits as well; torch multiplies some rows of the matrix out at a time.
        """
        rows, columns = self.shape
        if can_multiply(x):
            return multiply(self.tiles, rows, x, bias)
        step = max(1, _AT_ONCE // (columns * TILE))
        if torch.compiler.is_compiling() or rows <= step * TILE:
            return F.linear(x, self.dequantized(x.dtype), bias)
        out = torch.empty(*x.shape[:-1], rows, dtype=x.dtype, device=x.device)
        for first in range(0, len(self.integers), step):
            here = slice(first, first + step)
            some = slice(first * TILE, (first + step) * TILE)
            tiles = Tiles(self.integers[here], self.scales[here], None if self.minima is None else self.minima[here])
            part = dequantize(untile(tiles, rows - some.start), x.dtype)
            out[..., some] = F.linear(x, part, None if bias is None else bias[some])
        return out

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        """As it is saved (see `rounded`), and not as it lies in memory."""
        super()._save_to_state_dict(destination, prefix, keep_vars)
        for name, part in self.rounded._asdict().items():
            if part is not None:
                destination[prefix + name] = part

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        """Scales keep their format whatever becomes of the activations: bfloat16 would round them."""
        kept = self.scales, self.minima
        super()._apply(fn, recurse)
        for name, before in zip(("scales", "minima"), kept, strict=True):
            if before is not None and getattr(self, name).dtype != before.dtype:
                setattr(self, name, before.to(self.integers.device))
        return self

    def extra_repr(self) -> str:
        """Its size, as in the repr of other layers."""
        rows, columns = self.shape
        return f"in_features={columns}, out_features={rows}, bits={self.bits}"


class QuantizedLinear(QuantizedMatrix):
    """``x @ matrix.T + bias``, like `nn.Linear`."""

    bias: Tensor | None

    def __init__(self, rounded: Rounded, bias: Tensor | None = None, dtype: torch.dtype = torch.float32) -> None:
        super().__init__(rounded, dtype)
        self.register_buffer("bias", bias)

    def forward(self, x: Float[Tensor, "*batch inputs"]) -> Float[Tensor, "*batch outputs"]:
        """Transform each vector by itself."""
        return self.multiply(x, self.bias)


class QuantizedEmbedding(QuantizedMatrix):
    """A row for each id, like `nn.Embedding`."""

    def forward(self, ids: Int[Tensor, "*batch"]) -> Float[Tensor, "*batch columns"]:
        """Look the rows up."""
        rows = dequantize(pick(self.tiles, ids.flatten()), self.dtype)
        return rows.view(*ids.shape, -1)


def dequantize(rounded: Rounded, dtype: torch.dtype) -> Float[Tensor, "rows columns"]:
    """The matrix in floating point: computed in float32, and rounded once."""
    scales = rounded.scales.float()[..., None]
    if rounded.minima is None:
        codes = rounded.integers.unflatten(1, (-1, GROUP))
        return (codes.float() * scales).to(dtype).flatten(1)
    minima, groups = rounded.minima.float()[..., None], rounded.integers.unflatten(1, (-1, GROUP // 2))
    matrix = torch.empty(*groups.shape[:2], GROUP, dtype=dtype, device=groups.device)
    matrix[..., : GROUP // 2] = torch.addcmul(minima, (groups & 15).float(), scales)
    matrix[..., GROUP // 2 :] = torch.addcmul(minima, (groups >> 4).float(), scales)
    return matrix.flatten(1)


def linear(
    x: Float[Tensor, "*batch columns"], matrix: Tensor | QuantizedMatrix, bias: Float[Tensor, " rows"] | None = None
) -> Float[Tensor, "*batch rows"]:
    """``x @ matrix.T + bias`` of a matrix in floating point or in integers."""
    return matrix.multiply(x, bias) if isinstance(matrix, QuantizedMatrix) else F.linear(x, matrix, bias)


def fits(rows: int, columns: int) -> bool:
    """Whether a matrix can be made of whole groups, and is large enough to gain by it."""
    return columns % GROUP == 0 and rows >= GROUP


def quantized(module: nn.Linear | nn.Embedding, rounded: Rounded, dtype: torch.dtype) -> QuantizedMatrix:
    """What takes the place of a module whose matrix was rounded."""
    if isinstance(module, nn.Embedding):
        return QuantizedEmbedding(rounded, dtype)
    bias = cast("Tensor | None", module.bias)
    return QuantizedLinear(rounded, None if bias is None else bias.detach(), dtype)
