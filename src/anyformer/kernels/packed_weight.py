"""Quantized weights in the order in which compiled code multiplies them: sixteen rows interleaved.

A block is 16 rows, and a group 32 neighbors in each of them. Of 8 bits, byte ``[k, r, i]`` of a group is 128 more than
the integer of row r in column 4k + i; of 4 bits, it has that of column 4k + i in its low half and that of column
16 + 4k + i in its high one. So every byte is read once, in order, and four products of each row are one instruction.

Decoding reads every weight for every token, so minima of 4 bits that are -8 times the scales (llama.cpp's Q4_0) are
left out: 4.5 bits a weight in the place of 5.
"""

import math
import mmap
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from threading import Lock
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float16, UInt8
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from anyformer.dtensor import full_tensor, is_dtensor
from anyformer.kernels.cpu.library import is_intercepted
from anyformer.kernels.quantization import GROUP, QuantizedWeight, dequantize, quantize_int8

BLOCK_ROWS = 16
"""Rows that are interleaved: as many as a vector register has float32 numbers."""
_QUAD = 4
_OFFSET = 128
_CHUNK = 1 << 18
"""Weights that are transposed at a time."""
_PACKED = 1 << 24
"""Weights that are interleaved at a time: more of them would be in memory three times."""

_MEMORY_BLOCK = 1 << 25
_ALIGNMENT = 64
"""Bytes of a cache line and of a vector register."""
_lock = Lock()
_memory: mmap.mmap | None = None
_used = 0


class PackedWeight(NamedTuple):
    """A quantized weight as compiled code reads it; the last block is padded with rows of zeros."""

    integers: UInt8[Tensor, "blocks groups quads 16 4"]
    """8 quads of 8 bits, 4 of 4 bits."""
    scales: Float16[Tensor, "blocks groups 16"]
    minima: Float16[Tensor, "blocks groups 16"] | None
    """None of 8 bits, where all are 0; and of 4 bits where all are -8 times the scale."""
    rows: int
    """Rows of the matrix, without padding."""

    @property
    def bits(self) -> int:
        """8 or 4."""
        return self.integers.shape[2]

    @property
    def columns(self) -> int:
        """Columns of the matrix."""
        return self.integers.shape[1] * GROUP

    def blocks(self, start: int, end: int) -> "PackedWeight":
        """Some of its blocks, as a view."""
        minima = None if self.minima is None else self.minima[start:end]
        rows = min(self.rows, end * BLOCK_ROWS) - start * BLOCK_ROWS
        return PackedWeight(self.integers[start:end], self.scales[start:end], minima, rows)

    def map(self, function: Callable[[Tensor], Tensor]) -> "PackedWeight":
        """The weight with each of its tensors as a function makes it."""
        minima = None if self.minima is None else function(self.minima)
        return PackedWeight(function(self.integers), function(self.scales), minima, self.rows)

    def whole(self) -> "PackedWeight":
        """The weight put together, where processes have its blocks spread among them: all of them must call it."""
        return self.map(full_tensor) if is_dtensor(self.integers) else self


def pack(weight: QuantizedWeight) -> PackedWeight:
    """Interleave the rows of a weight: a copy, made of some rows at a time."""
    rows, groups = weight.scales.shape
    blocks, device = -(-rows // BLOCK_ROWS), weight.scales.device
    quads = weight.integers.shape[1] // max(1, groups) // _QUAD
    integers = _empty((blocks, groups, quads, BLOCK_ROWS, _QUAD), torch.uint8, device)
    shape = (blocks, groups, BLOCK_ROWS)
    scales = _empty(shape, torch.float16, device)
    minima = None if weight.minima is None or _is_centered(weight) else _empty(shape, torch.float16, device)
    packed = PackedWeight(integers, scales, minima, rows)
    step = max(1, _PACKED // (groups * GROUP * BLOCK_ROWS + 1))
    for start in range(0, blocks, step):
        part, taken = packed.blocks(start, start + step), slice(start * BLOCK_ROWS, (start + step) * BLOCK_ROWS)
        some = None if minima is None or weight.minima is None else weight.minima[taken]
        byte = weight.integers[taken].view(torch.uint8)
        made = _interleaved(byte if weight.bits == 4 else byte ^ _OFFSET, weight.scales[taken], some)
        _quads(part.integers).copy_(_quads(made.integers))
        part.scales.copy_(made.scales)
        if part.minima is not None and made.minima is not None:
            part.minima.copy_(made.minima)
    return packed


def transpose(packed: PackedWeight) -> PackedWeight:
    """The transpose of a packed weight, in 8 bits with scales along its own rows.

    Some blocks are transposed at a time, so that the whole matrix never is in any other form. Its columns are padded
    with zeros to whole groups. Raises ValueError as `quantize_int8`.
    """
    transposed = empty_transpose(packed)
    step = max(1, _CHUNK // (packed.columns * GROUP))
    for group in range(0, transposed.integers.shape[1], step):
        first, last = (each * GROUP // BLOCK_ROWS for each in (group, group + step))
        part = dequantize(unpack(packed.blocks(first, last)), torch.float32)
        turned = quantize_int8(F.pad(part.T, (0, -len(part) % GROUP)))
        part = _interleaved(turned.integers.view(torch.uint8) ^ _OFFSET, turned.scales, None)
        _quads(transposed.integers)[:, group : group + step] = _quads(part.integers)
        transposed.scales[:, group : group + step] = part.scales
    return transposed


def empty_transpose(packed: PackedWeight) -> PackedWeight:
    """An uninitialized result of `transpose`."""
    blocks, groups, device = -(-packed.columns // BLOCK_ROWS), -(-packed.rows // GROUP), packed.integers.device
    integers = _empty((blocks, groups, GROUP // _QUAD, BLOCK_ROWS, _QUAD), torch.uint8, device)
    return PackedWeight(integers, _empty((blocks, groups, BLOCK_ROWS), torch.float16, device), None, packed.columns)


def _interleaved(byte: Tensor, scales: Tensor, minima: Tensor | None) -> PackedWeight:
    """A packed weight that need not be contiguous, of [rows, ...] of a quantized one, 8 bits without their sign."""
    rows, groups = scales.shape
    padded = _whole_blocks(byte)
    quads = padded.view(-1, BLOCK_ROWS, groups, padded.shape[1] // groups // _QUAD, _QUAD)
    minima = None if minima is None else _blocks(minima)
    return PackedWeight(quads.permute(0, 2, 3, 1, 4), _blocks(scales), minima, rows)


def _quads(integers: Tensor) -> Tensor:
    """View four bytes as a number of 32 bits: torch copies those eight times as fast."""
    return integers.view(torch.int32)


def _is_centered(weight: QuantizedWeight) -> bool:
    """Whether the minima of a 4-bit weight follow from its scales."""
    if weight.scales.is_meta or isinstance(weight.scales, FakeTensor) or is_intercepted():
        return False  # as of those that `quantize_int4` makes
    return weight.minima is not None and torch.equal(weight.minima, -8 * weight.scales)


def unpack(packed: PackedWeight) -> QuantizedWeight:
    """The inverse of `pack`."""
    integers = _rows(_quads(packed.integers).permute(0, 3, 1, 2, 4), packed.rows).contiguous().view(torch.uint8)
    minima = None if packed.minima is None else _rows(packed.minima.mT, packed.rows)
    return _quantized(packed, integers, _rows(packed.scales.mT, packed.rows), minima)


def select_rows(packed: PackedWeight, rows: Tensor) -> QuantizedWeight:
    """Some rows of a packed weight, by their indices [count]."""
    block, row = rows // BLOCK_ROWS, rows % BLOCK_ROWS
    minima = None if packed.minima is None else packed.minima[block, :, row]
    integers = _quads(packed.integers)[block, :, :, row].flatten(1).view(torch.uint8)
    return _quantized(packed, integers, packed.scales[block, :, row], minima)


def _quantized(packed: PackedWeight, integers: Tensor, scales: Tensor, minima: Tensor | None) -> QuantizedWeight:
    """Rows of a packed weight, each by itself, as a quantized one."""
    if packed.bits == 8:
        return QuantizedWeight(integers.bitwise_xor_(_OFFSET).view(torch.int8), scales, None)  # a copy already
    return QuantizedWeight(integers, scales, -8 * scales if minima is None else minima)


def _blocks(part: Tensor) -> Tensor:
    """[rows, groups] as [blocks, groups, 16]."""
    return _whole_blocks(part).view(-1, BLOCK_ROWS, part.shape[1]).mT


def _whole_blocks(rows: Tensor) -> Tensor:
    """The rows, and zeros after them to a multiple of 16; no copy where there are as many."""
    missing = -len(rows) % BLOCK_ROWS
    return F.pad(rows, (0, 0, 0, missing)) if missing else rows


def _rows(part: Tensor, rows: int) -> Tensor:
    """[blocks, 16, ...] as [rows, ...]."""
    return part.reshape(part.shape[0] * BLOCK_ROWS, -1)[:rows]


def _empty(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """An uninitialized tensor, on a CPU in huge pages.

    With small pages a decoding step, which reads every weight from end to end, takes a tenth longer
    (docs/measurements/decoding.md). Many matrices are smaller than one huge page (2 MB), so they share blocks of
    memory, each of which is allocated from front to back and freed with the last tensor in it.
    """
    global _memory, _used
    count = math.prod(shape)
    size = count * dtype.itemsize
    if device.type != "cpu" or size == 0:
        return torch.empty(*shape, dtype=dtype, device=device)
    with _lock:
        if size >= _MEMORY_BLOCK:
            memory, offset = _map(size), 0
        else:
            if _memory is None or _used + size > _MEMORY_BLOCK:
                _memory, _used = _map(_MEMORY_BLOCK), 0
            memory, offset = _memory, _used
            _used += -(-size // _ALIGNMENT) * _ALIGNMENT
    return torch.frombuffer(memory, dtype=dtype, count=count, offset=offset).view(*shape)


def begin_memory_block() -> None:
    """Leave the block of memory that is being filled to the weights that are in it already."""
    global _memory
    with _lock:
        _memory = None


def _map(size: int) -> mmap.mmap:
    if sys.platform != "linux":
        return mmap.mmap(-1, size)
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(OSError):  # a kernel without huge pages
        memory.madvise(mmap.MADV_HUGEPAGE)
    return memory
