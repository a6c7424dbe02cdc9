"""Memory in huge pages, for weights that every decoding step reads from end to end.

With small pages a step takes a tenth longer (docs/measurements/decoding.md). Linux gives huge pages (2 MB) to memory
that is advised to have them; many matrices are smaller than one, so they share blocks.
"""

import math
import mmap
import sys
from contextlib import suppress
from threading import Lock

import torch
from torch import Tensor

_BLOCK = 1 << 25
_ALIGNMENT = 64
"""Bytes of a cache line and of a vector register."""


class _Block:
    """Memory that is allocated from front to back, and freed with the last tensor in it."""

    def __init__(self, size: int) -> None:
        if sys.platform == "linux":
            self._memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            with suppress(OSError):  # a kernel without huge pages
                self._memory.madvise(mmap.MADV_HUGEPAGE)
        else:
            self._memory = mmap.mmap(-1, size)
        self._used = 0
        self._size = size

    def allocate(self, size: int) -> Tensor | None:
        if self._used + size > self._size:
            return None
        offset = self._used
        self._used += -(-size // _ALIGNMENT) * _ALIGNMENT
        return torch.frombuffer(self._memory, dtype=torch.uint8, count=size, offset=offset)


_lock = Lock()
_latest: _Block | None = None


def to_huge_pages(tensor: Tensor) -> Tensor:
    """A contiguous copy in huge pages; on other devices than the CPU, the contiguous tensor."""
    global _latest
    if tensor.device.type != "cpu" or tensor.numel() == 0:
        return tensor.contiguous()
    size = math.prod(tensor.shape) * tensor.element_size()
    with _lock:
        memory = None if _latest is None else _latest.allocate(size)
        if memory is None:
            block = _Block(max(_BLOCK, size))
            memory = block.allocate(size)
            if size < _BLOCK:
                _latest = block
    assert memory is not None
    return memory.view(tensor.dtype).view(tensor.shape).copy_(tensor)
