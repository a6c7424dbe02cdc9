"""A matrix of 8-bit or 4-bit integers, instead of a parameter."""

from collections.abc import Callable
from contextlib import suppress

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from typing_extensions import override

from anyformer.kernels.packed_weight import PackedWeight, pack, select_rows, transpose, unpack
from anyformer.kernels.quantization import QuantizedWeight, dequantize


class QuantizedMatrix(nn.Module):
    """The weight of a `Linear` or an `Embedding` in an eighth to a quarter of float32's memory.

    It holds integers, with a scale for every 32 neighbors in a row, in the order in which they are multiplied. The
    rows of an embedding get the dtype, which is that of the activations.
    """

    integers: Tensor
    scales: Tensor
    minima: Tensor | None
    activations: Tensor
    """Empty: its dtype is that of the activations, and follows `model.to(dtype)` as parameters do."""
    cached_transpose: PackedWeight | None
    """The transpose, once `transposed` was called; None before, and where it can't be quantized."""

    def __init__(self, weight: QuantizedWeight, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.cached_transpose = None
        self.shape = weight.shape
        for name, part in zip(("integers", "scales", "minima"), pack(weight)[:3], strict=True):
            self.register_buffer(name, part, persistent=False)
        empty = torch.empty(0, dtype=dtype, device=weight.integers.device)
        self.register_buffer("activations", empty, persistent=False)

    @property
    def bits(self) -> int:
        """8 or 4."""
        return self.packed_weight.bits

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the activations."""
        return self.activations.dtype

    @property
    def device(self) -> torch.device:
        """The device of the integers."""
        return self.integers.device

    @property
    def packed_weight(self) -> PackedWeight:
        """The integers, scales and minima as they are in memory."""
        return PackedWeight(self.integers, self.scales, self.minima, self.shape[0])

    def unpacked(self) -> QuantizedWeight:
        """The integers, scales and minima as they are saved: a copy."""
        return unpack(self.packed_weight)

    def dequantize(self, dtype: torch.dtype | None = None) -> Float[Tensor, "rows columns"]:
        """The matrix in floating point; None: in the dtype of the activations."""
        return dequantize(self.unpacked(), dtype or self.dtype)

    def transposed(self) -> PackedWeight | None:
        """The transpose in integers of 8 bits, which the gradient of an input is multiplied with; made once.

        None where its numbers are too large for the scales.
        """
        if self.cached_transpose is None:
            with suppress(ValueError):
                self.cached_transpose = transpose(self.packed_weight)
        return self.cached_transpose

    def drop_transposed(self) -> None:
        """Free the transpose, a byte for each weight; the next gradient makes it anew."""
        self.cached_transpose = None

    def rows(self, ids: Int[Tensor, "*batch"]) -> Float[Tensor, "*batch columns"]:
        """The rows of these indices, in the dtype of the activations."""
        return dequantize(select_rows(self.packed_weight, ids.flatten()), self.dtype).view(*ids.shape, -1)

    @override
    def _save_to_state_dict(self, destination: dict[str, Tensor], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        for name, part in self.unpacked()._asdict().items():
            if part is not None:
                destination[prefix + name] = part

    @override
    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        self.cached_transpose = None  # it would stay where it is
        # Scales keep their dtype whatever becomes of the activations: bfloat16 would round them.
        kept = {"scales": self.scales, "minima": self.minima}
        super()._apply(fn, recurse)
        for name, before in kept.items():
            if before is not None and getattr(self, name).dtype != before.dtype:
                setattr(self, name, before.to(self.integers.device))
        return self

    @override
    def extra_repr(self) -> str:
        rows, columns = self.shape
        return f"{rows}, {columns}, bits={self.bits}"
