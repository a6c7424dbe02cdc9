"""What the C allocator takes from the system for the tensors of a training step.

glibc aligns a tensor by asking itself for 96 bytes more than it needs and cutting off both ends. The small objects that
torch keeps for each tensor settle in those ends, so a hole that a tensor leaves is a little too small for the next one
of its size, and the heap grows beyond the tensors that are alive: by a tenth as a rule, by a quarter at worst. Torch's
training loop keeps freed memory (see `training.memory`), so all tensors are in the heap.

The rules are those of glibc 2.26 and later (malloc/malloc.c): a cache of seven chunks of each small size, fast bins,
best fit in everything else, neighbors joined when they are freed.
"""

from bisect import bisect_left, insort
from collections import defaultdict
from collections.abc import Iterable

_HEADER, _GRAIN, _SMALLEST = 8, 16, 32
_ALIGNMENT = 64
"""Of a tensor's memory."""
_CACHED, _CACHE_SLOTS, _FAST = 1040, 7, 128
_CONSOLIDATES = 1 << 16
"""Freeing a chunk of this size empties the fast bins; asking for a large one does so, too."""
_LARGE = 1024
OBJECTS = (*(24,) * 4, *(40,) * 4, *(56,) * 4, *(72,) * 3, 200, 300, 400)
"""Bytes of what torch allocates for a tensor beside its numbers: counters, names, sizes and strides, edges and saved
variables of a node of the graph, the storage, the tensor and the node themselves."""


def heap_size(events: Iterable[tuple[int, int]]) -> int:
    """Bytes of the heap when it is largest.

    Args:
        events: Of tensors, see `Simulation.events`.
    """
    heap = _Heap()
    chunks: dict[int, list[int]] = {}
    for key, size in events:
        if size:
            chunks[key] = [heap.aligned(size), *(heap.allocate(each) for each in OBJECTS)]
        else:
            for chunk in chunks.pop(key):
                heap.free(chunk)
    return heap.peak


class _Heap:
    def __init__(self) -> None:
        self.peak = 0
        self._top = 0
        self._used: dict[int, int] = {}
        self._free: list[tuple[int, int]] = []
        self._sizes: dict[int, int] = {}
        self._begins: dict[int, int] = {}
        self._cache: defaultdict[int, list[int]] = defaultdict(list)
        self._fast: list[int] = []

    def allocate(self, size: int) -> int:
        """The address of a chunk with room for `size` bytes."""
        chunk = max(-(-(size + _HEADER) // _GRAIN) * _GRAIN, _SMALLEST)
        if self._cache[chunk]:
            address = self._cache[chunk].pop()
            self._used[address] = chunk
            return address
        return self._take(chunk)

    def aligned(self, size: int) -> int:
        """The same, aligned for a tensor."""
        chunk = max(-(-(size + _HEADER) // _GRAIN) * _GRAIN, _SMALLEST)
        address = self._take(chunk + _ALIGNMENT + _SMALLEST)
        whole = self._used.pop(address)
        # The numbers begin after the header and the size of the chunk before.
        before = -(address + _GRAIN) % _ALIGNMENT
        if 0 < before < _SMALLEST:
            before += _ALIGNMENT
        if before:
            self._used[address] = before
            self.free(address)
        address, whole = address + before, whole - before
        if whole > chunk + _SMALLEST:
            self._used[address + chunk] = whole - chunk
            self.free(address + chunk)
            whole = chunk
        self._used[address] = whole
        return address

    def free(self, address: int) -> None:
        """Let go of a chunk."""
        size = self._used[address]
        if size <= _CACHED and len(self._cache[size]) < _CACHE_SLOTS:
            del self._used[address]
            self._cache[size].append(address)
        elif size <= _FAST:
            self._fast.append(address)
        else:
            self._join(address)
            if size >= _CONSOLIDATES:
                self._consolidate()

    def _take(self, chunk: int) -> int:
        if chunk >= _LARGE:
            self._consolidate()
        elif chunk <= _FAST:
            fitting = next((each for each in reversed(self._fast) if self._used[each] == chunk), None)
            if fitting is not None:
                self._fast.remove(fitting)
                return fitting
        place = bisect_left(self._free, (chunk, -1))
        if place == len(self._free):
            address, self._top = self._top, self._top + chunk
            self.peak = max(self.peak, self._top)
        else:
            size, address = self._free[place]
            self._remove(address)
            if size - chunk >= _SMALLEST:
                self._add(address + chunk, size - chunk)
            else:
                chunk = size
        self._used[address] = chunk
        return address

    def _consolidate(self) -> None:
        for address in self._fast:
            self._join(address)
        self._fast.clear()

    def _join(self, address: int) -> None:
        """Add a chunk to the free ones, as one with those beside it."""
        size = self._used.pop(address)
        if address + size in self._sizes:
            size += self._remove(address + size)
        if address in self._begins:
            begin = self._begins[address]
            size += self._remove(begin)
            address = begin
        if address + size == self._top:
            self._top = address
        else:
            self._add(address, size)

    def _add(self, address: int, size: int) -> None:
        insort(self._free, (size, address))
        self._sizes[address] = size
        self._begins[address + size] = address

    def _remove(self, address: int) -> int:
        size = self._sizes.pop(address)
        del self._begins[address + size]
        del self._free[bisect_left(self._free, (size, address))]
        return size
