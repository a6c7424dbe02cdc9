"""Memory of the C library's heap for the tensors of training steps, found by allocating them.

The room that a tensor leaves is not always what the next one needs, and some of it stays with small objects that
outlive the tensor (anyformer/training/memory.py), so the heap grows beyond the tensors that are alive, by a tenth as a
rule.

No formula tells where all of them come to lie, so glibc is asked: the step is taken on real tensors, among the objects
that torch makes in a real step. Their memory is neither written nor read, so it costs none: the system provides a page
when it is first written.
"""

import gc
import math
from collections.abc import Callable, Sequence
from functools import cache, reduce
from statistics import median
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from anyformer.plan.internals import Layout, layout
from anyformer.plan.simulation import Simulation
from anyformer.training.memory import keep_freed_memory, proc_field, return_freed_memory, trim_heap

_DRY_RUNS = 2
_DRY_RUNS_OF_SEVERAL = 4
"""Where the objects lie is left to chance, and with it the size of the heap: the median counts. Whole weights that come
and go leave more to it."""
_PAGE = 4096
_LARGEST_PRODUCT = 1 << 26
"""Bytes of operands and result: larger products are not computed to learn what their library keeps for them."""
_GLOO_THREADS = 2
"""Threads of a process group. Each has a heap of its own, which keeps the memory of what was gathered there."""
_GLOO_SEGMENTS = 1 << 21
"""Bytes of the two pieces in which it adds up tensors, at most."""
_LARGEST_IN_THREAD = (1 << 26) - _GLOO_SEGMENTS
"""Bytes: what is larger has no room in a thread's heap (glibc, HEAP_MAX_SIZE) beside those pieces, and is given back to
the system when it is freed."""
_aten, _c10d = torch.ops.aten, torch.ops.c10d
_GATHER, _REDUCE_SCATTER = _c10d._allgather_base_.default, _c10d._reduce_scatter_base_.default
_PRODUCTS = {_aten.mm.default, _aten.addmm.default, _aten.bmm.default, _aten.baddbmm.default}


def heap_size(take_steps: Callable[[Simulation], object], processes: int = 1, dry_runs: int | None = None) -> int:
    """Bytes that tensors, and what libraries keep for products, take of the heap; 0 where there is no such heap.

    Args:
        take_steps: Trains in a simulation, for some steps.
        processes: that train together, of which it simulates one.
        dry_runs: whose median counts; None: as many as it takes to leave little to chance.
    """
    _load_libraries()
    gc.collect()
    if not keep_freed_memory():
        return 0
    sizes = list[int]()
    for _ in range(dry_runs or (_DRY_RUNS if processes == 1 else _DRY_RUNS_OF_SEVERAL)):
        gc.collect()
        return_freed_memory()
        dry_run = DryRun()
        try:
            take_steps(dry_run)
        except RuntimeError as error:
            if "can't allocate memory" not in str(error):
                raise
            return 0  # the system promises no more memory than it has
        sizes.append(dry_run.size() + sum(map(_kept, dry_run.products)))
    return round(median(sizes))


def _load_libraries() -> None:
    """Have torch load what it loads when it first needs it, whose memory is not that of a step."""
    for dtype in (torch.float32, torch.bfloat16):
        matrix = torch.ones(256, 256, dtype=dtype)
        torch.addmm(matrix, matrix, matrix)
        torch.bmm(matrix[None], matrix[None])


def _resident() -> int:
    """Bytes of memory that this process has, to the page; 0 where the system does not tell."""
    return proc_field("self/smaps_rollup", "Rss") or 0


_Product = tuple[Any, tuple[Layout, ...]]


@cache
def _kept(product: _Product) -> int:
    """Bytes of memory that a library keeps once a matrix product has been computed for the first time."""
    func, layouts = product
    *_, left, right = layouts
    result = math.prod(left.shape[:-1]) * right.shape[-1] * left.dtype.itemsize
    if result + sum(each.size for each in layouts) > _LARGEST_PRODUCT:
        return 0
    operands = [torch.empty_strided(each.shape, each.stride, dtype=each.dtype) for each in layouts]
    trim_heap()
    before = _resident()
    func(*operands)
    trim_heap()  # that of the result
    return _resident() - before


_resize = torch.UntypedStorage.resize_


class DryRun(Simulation):
    """A `Simulation` on real tensors, whose memory is not touched.

    Attributes:
        products: functions and layouts of the matrix products that it takes.
    """

    def __init__(self) -> None:
        super().__init__()
        self.products: set[_Product] = set()
        self._places: set[tuple[int, int]] = set()
        self._now: dict[int, tuple[int, int]] = {}
        self._in_thread = 0
        self._outside = 0

    def size(self) -> int:
        """Bytes of all pages in which a tensor ever lay, and of gloo's."""
        pages = end = 0
        for address, size in sorted(self._places):
            first, last = max(address // _PAGE, end), -(-(address + size) // _PAGE)
            if last > first:
                pages, end = pages + last - first, last
        return pages * _PAGE + _GLOO_THREADS * self._in_thread + self._outside

    @override
    def _outputs(self, func: Any, args: Any, kwargs: Any, tensors: Sequence[Tensor]) -> Any:
        if func.namespace == "c10d":
            self._copy_whole(func, tensors)
        return super()._outputs(func, args, kwargs, tensors)

    @override
    def _results(self, func: Any, args: Any, kwargs: Any, tensors: Sequence[Tensor]) -> Any:
        if func in _PRODUCTS:
            self.products.add((func, tuple(map(layout, tensors))))
        promoted = _promoted(func, tensors)
        self._places.update((part.data_ptr(), part.nbytes) for part in promoted)
        return super()._results(func, args, kwargs, tensors)

    @override
    def _empty(self, like: Layout) -> Tensor:
        return torch.empty_strided(like.shape, like.stride, dtype=like.dtype)

    @override
    def _resize(self, storage: torch.UntypedStorage, size: int) -> None:
        _resize(storage, size)

    def _copy_whole(self, func: Any, tensors: Sequence[Tensor]) -> None:
        """Allocate as gloo to exchange tensors: copies of the whole one, of which each process has a share."""
        size = max(tensor.nbytes for tensor in tensors)
        if func in (_GATHER, _REDUCE_SCATTER):
            self._places.add((torch.empty(size, dtype=torch.uint8).data_ptr(), size))
        in_thread = size if func is _GATHER else min(size // 2, _GLOO_SEGMENTS)
        if in_thread < _LARGEST_IN_THREAD:
            self._in_thread = max(self._in_thread, in_thread)
        else:
            self._outside = max(self._outside, in_thread)

    @override
    def _allocate(self, storage: torch.UntypedStorage) -> None:
        super()._allocate(storage)
        if storage.device.type == "cpu" and storage.nbytes():
            self._now[id(storage)] = storage.data_ptr(), storage.nbytes()
            self._places.add(self._now[id(storage)])

    @override
    def _release(self, key: int) -> None:
        super()._release(key)
        self._now.pop(key, None)

    @override
    def restart(self) -> None:
        """Forget how much memory there was before. What is freed from now on is kept, as after a run's first step."""
        super().restart()
        keep_freed_memory()
        self._places = {*self._now.values()}


def _promoted(func: Any, tensors: Sequence[Tensor]) -> list[Tensor]:
    """The dtype that a CPU copies operands of several dtypes to, before it allocates the result."""
    dtypes = {part.dtype for part in tensors if part.is_floating_point() and part.dim()}
    if len(dtypes) < 2 or torch.Tag.pointwise not in func.tags:
        return []
    common = reduce(torch.promote_types, dtypes)
    return [torch.empty_like(part, dtype=common) for part in tensors if part.dtype in dtypes - {common}]
