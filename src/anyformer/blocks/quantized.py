"""A matrix of 8-bit or 4-bit integers, instead of a parameter."""

from collections.abc import Callable
from contextlib import suppress
from copy import copy
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from typing_extensions import override

from anyformer.dtensor import cut_like, is_dtensor
from anyformer.kernels.packed_weight import (
    PackedWeight,
    begin_memory_block,
    pack,
    select_rows,
    transpose,
    unpack,
)
from anyformer.kernels.quantization import QuantizedWeight, dequantize


class QuantizedMatrix(nn.Module):
    """The weight of a `Linear` or an `Embedding` in an eighth to a quarter of float32's memory.

    It holds integers, with a scale for every 32 neighbors in a row, in the order in which they are multiplied. The
    rows of an embedding get the dtype, which is that of the activations. Processes may have its blocks of rows spread
    among them (`spread`): whatever reads the weight puts it together for as long as it computes.
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

    def spread(self, cut: Callable[[Tensor], Tensor]) -> None:
        """Keep what `cut` makes of the whole tensors: this process's blocks of rows."""
        if not is_dtensor(self.integers):
            begin_memory_block()  # or that of the whole tensors would stay until it is full
            self.integers, self.scales, self.minima, _ = self.packed_weight.map(cut)

    def whole(self) -> "QuantizedMatrix":
        """The matrix itself, or, where it is spread, one with the whole tensors; then all processes must call it."""
        if not is_dtensor(self.integers):
            return self
        matrix = copy(self)
        matrix._buffers = {**self._buffers}
        matrix.cached_transpose = None
        matrix.integers, matrix.scales, matrix.minima, _ = self.packed_weight.whole()
        return matrix

    def unpacked(self) -> QuantizedWeight:
        """The integers, scales and minima as they are saved: a copy."""
        return unpack(self.packed_weight.whole())

    def dequantize(self, dtype: torch.dtype | None = None) -> Float[Tensor, "rows columns"]:
        """The matrix in floating point; None: in the dtype of the activations."""
        return dequantize(self.unpacked(), dtype or self.dtype)

    def transposed(self) -> PackedWeight | None:
        """The transpose in integers of 8 bits, which the gradient of an input is multiplied with; made once.

        Spread as the weight is. None where its numbers are too large for the scales.
        """
        if self.cached_transpose is None:
            with suppress(ValueError):
                whole = transpose(self.packed_weight.whole())
                self.cached_transpose = whole.map(partial(cut_like, reference=self.integers))
        return self.cached_transpose

    def drop_transposed(self) -> None:
        """Free the transpose, a byte for each weight; the next gradient makes it anew."""
        self.cached_transpose = None

    def rows(self, ids: Int[Tensor, "*batch"]) -> Float[Tensor, "*batch columns"]:
        """The rows of these indices, in the dtype of the activations."""
        return dequantize(select_rows(self.packed_weight.whole(), ids.flatten()), self.dtype).view(*ids.shape, -1)

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
