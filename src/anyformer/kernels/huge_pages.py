"""Memory in large pages, for weights that every token reads from end to end.

With small pages a step takes a tenth longer (docs/measurements/decoding.md). Linux gives large ones (2 MB) to whoever
asks for them; many matrices are smaller than one, so they share blocks.
"""

import math
import mmap
import sys
from contextlib import suppress
from threading import Lock

import torch
from torch import Tensor

_BLOCK = 1 << 25
_ALIGNED = 64
"""Bytes: a line of a cache, and a vector register."""


class _Block:
    """Memory that is handed out from its beginning to its end; it is freed with the last tensor in it."""

    def __init__(self, size: int) -> None:
        if sys.platform == "linux":
            self._memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            with suppress(OSError):  # a kernel without them
                self._memory.madvise(mmap.MADV_HUGEPAGE)
        else:
            self._memory = mmap.mmap(-1, size)
        self._used = 0
        self._size = size

    def take(self, size: int) -> Tensor | None:
        if self._used + size > self._size:
            return None
        first = self._used
        self._used += -(-size // _ALIGNED) * _ALIGNED
        return torch.frombuffer(self._memory, dtype=torch.uint8, count=size, offset=first)


_lock = Lock()
_latest: _Block | None = None


def kept(tensor: Tensor) -> Tensor:
    """A copy in large pages, row after row; the tensor itself where it is not on a CPU."""
    global _latest
    if tensor.device.type != "cpu" or tensor.numel() == 0:
        return tensor.contiguous()
    size = math.prod(tensor.shape) * tensor.element_size()
    with _lock:
        place = None if _latest is None else _latest.take(size)
        if place is None:
            block = _Block(max(_BLOCK, size))
            place = block.take(size)
            if size < _BLOCK:
                _latest = block
    assert place is not None
    return place.view(tensor.dtype).view(tensor.shape).copy_(tensor)
