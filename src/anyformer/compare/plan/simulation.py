"""Training steps on tensors without memory, whose storages, products and kernels are counted.

The real model, optimizer and engine run on torch's fake tensors, which have shapes, dtypes and lifetimes, but no data.
What depends on the batch alone, such as which tokens are masked, is computed as well, for sizes follow from it.
"""

import sys
import weakref
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DynamicOutputShapeException, FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import (
    TorchDispatchMode,
    _disable_current_modes,  # pyright: ignore[reportPrivateUsage]
)
from torch.utils._pytree import tree_iter, tree_map_only
from torch.utils.flop_counter import flop_registry
from typing_extensions import override

from anyformer.kernels.cpu import library
from anyformer.kernels.operation import OPERATIONS

PARTS = ("weights", "gradients", "optimizer", "activations", "logits", "batch")
"""What memory is for. Activations are all that a step computes on its way, temporary tensors among them."""

_KNOWN_NUMBERS = 1 << 22
"""Larger tensors of the batch's making are not computed."""
_aten = torch.ops.aten
_READS = {_aten._local_scalar_dense.default, _aten.item.default, _aten.is_nonzero.default}
_DRAWS = {"uniform_", "normal_", "random_", "bernoulli_"}


@dataclass(slots=True)
class _Block:
    key: int
    size: int
    part: str


class Simulation(TorchDispatchMode):
    """Counts what happens to fake tensors while it is entered.

    Attributes:
        events: every allocation, as a key and its bytes, and every release, as the key and 0, in order.
        live: bytes that are allocated, by part.
        peak: the same when they were most.
        flops: of matrix products and attention, a multiply-add being two.
    """

    def __init__(self) -> None:
        super().__init__()
        self.events: list[tuple[int, int]] = []
        self.live: Counter[str] = Counter()
        self.peak: Counter[str] = Counter()
        self.flops = 0
        self._part = "weights"
        self._most = 0
        self._blocks: dict[int, _Block] = {}
        self._watched: set[int] = set()
        self._fake = FakeTensorMode(allow_non_fake_inputs=True)

    @contextmanager
    def running(self) -> Generator[None]:
        """In here all tensors are fake, and counted."""
        resize = torch.UntypedStorage.resize_

        def counted_resize(storage: Any, size: int) -> Any:
            found = resize(storage, size)
            self._release(_address(storage))
            self._allocate(storage)
            return found

        library.observers.append(self._kernel)
        # FSDP frees weights in this way, which is no operation that a mode would be told of.
        torch.UntypedStorage.resize_ = counted_resize  # pyright: ignore[reportAttributeAccessIssue]
        try:
            with self._fake, self:
                yield
        finally:
            torch.UntypedStorage.resize_ = resize
            library.observers.remove(self._kernel)

    @contextmanager
    def part(self, name: str) -> Generator[None]:
        """What is allocated in here is for this part."""
        before, self._part = self._part, name
        try:
            yield
        finally:
            self._part = before

    def within(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, all of whose allocations are for a part."""

        def counted(*args: Any, **kwargs: Any) -> Any:
            with self.part(name):
                return function(*args, **kwargs)

        return counted

    def assign(self, name: str, tensors: Iterable[Tensor]) -> None:
        """These tensors turned out to be of a part."""
        for tensor in tensors:
            block = self._blocks.get(_address(tensor.untyped_storage()))
            if block is not None:
                self.live[block.part] -= block.size
                self.live[name] += block.size
                block.part = name

    def known(self, array: npt.NDArray[Any]) -> Tensor:
        """A fake tensor like an array, whose data is remembered."""
        with _disable_current_modes():
            tensor = torch.from_numpy(array)
        fake = torch.empty(tensor.shape, dtype=tensor.dtype)
        fake._known = tensor  # pyright: ignore[reportAttributeAccessIssue]
        return fake

    @override
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not all(issubclass(kind, FakeTensor) or kind in (Tensor, nn.Parameter) for kind in types):
            return NotImplemented  # a DTensor: the operations on what this process has of it come here as well
        kwargs = kwargs or {}
        name = func._schema.name.partition("::")[2]
        if name in _DRAWS:
            return args[0]
        if func is _aten.add.Tensor and _is_accumulation(args):
            return args[0]
        values = [_value(part) for part in tree_iter((args, kwargs)) if isinstance(part, Tensor)]
        is_known = bool(values) and all(value is not None for value in values)
        if func in _READS:
            if not is_known:
                return 1  # all is finite: training goes well
            with _disable_current_modes():
                return values[0].item()  # pyright: ignore[reportOptionalMemberAccess]
        if is_known:
            out = self._computed(func, args, kwargs)
        elif func.namespace == "anyformer" and name in OPERATIONS:
            with self:
                out = OPERATIONS[name](*args, **kwargs)
        else:
            out = self._parts_of(func, args, kwargs)
            if out is not NotImplemented:
                return out
            out = func(*args, **kwargs)
        if func._overloadpacket in flop_registry:
            self.flops += flop_registry[func._overloadpacket](*args, **kwargs, out_val=out)
        for part in tree_iter(out):
            if isinstance(part, Tensor):
                self._allocate(part.untyped_storage())
        return out

    def _parts_of(self, func: Any, args: Any, kwargs: Any) -> Any:
        """What a function made of others returns, which are counted; NotImplemented: it is none."""
        if func._overloadpacket in flop_registry or func.namespace == "prim" or _has_kernel(func.name(), "CPU"):
            return NotImplemented
        with self:
            return func.decompose(*args, **kwargs)

    def _computed(self, func: Any, args: Any, kwargs: Any) -> Any:
        """What a function makes of tensors that are known: known ones."""
        with _disable_current_modes():
            real = func(*tree_map_only(Tensor, _value, args), **tree_map_only(Tensor, _value, kwargs))
        if func._schema.is_mutable:
            return args[0]
        try:
            out = func(*args, **kwargs)
        except DynamicOutputShapeException:
            out = tree_map_only(Tensor, lambda part: torch.empty(part.shape, dtype=part.dtype), real)
        for part, value in zip(tree_iter(out), tree_iter(real), strict=True):
            if isinstance(part, Tensor) and value.numel() <= _KNOWN_NUMBERS:
                part._known = value  # pyright: ignore[reportAttributeAccessIssue]
        return out

    def _allocate(self, storage: torch.UntypedStorage) -> None:
        address, size = _address(storage), storage.nbytes()
        if address not in self._watched:
            self._watched.add(address)
            weakref.finalize(storage, self._gone, address)
        if address in self._blocks or not size:
            return
        self._blocks[address] = _Block(len(self.events), size, self._part)
        self.events.append((len(self.events), size))
        self.live[self._part] += size
        if (total := self.live.total()) > self._most:
            self._most, self.peak = total, self.live.copy()

    def _release(self, address: int) -> None:
        block = self._blocks.pop(address, None)
        if block is not None:
            self.live[block.part] -= block.size
            self.events.append((block.key, 0))

    def _gone(self, address: int) -> None:
        self._watched.remove(address)
        self._release(address)

    def _kernel(self, name: str, arguments: Mapping[str, Any]) -> None:
        self.flops += _KERNEL_FLOPS.get(name, _no_flops)(**arguments)


def _is_accumulation(operands: tuple[Any, ...]) -> bool:
    """Whether autograd's engine adds a gradient to another of the same tensor: into its memory, unless it is fake."""
    if torch._C._current_graph_task_id() == -1:  # pyright: ignore[reportPrivateUsage]
        return False
    first, second = operands
    alike = isinstance(second, Tensor) and first.shape == second.shape and first.dtype == second.dtype
    frame: Any = sys._getframe(2)  # pyright: ignore[reportPrivateUsage]
    while "_dynamo" in frame.f_code.co_filename or frame.f_code.co_filename.endswith("_compile.py"):
        frame = frame.f_back
    return alike and first.is_contiguous() and "run_backward" in frame.f_code.co_name


_has_kernel = cache(torch._C._dispatch_has_kernel_for_dispatch_key)  # pyright: ignore[reportPrivateUsage]


def _address(storage: torch.UntypedStorage) -> int:
    return storage._cdata  # pyright: ignore[reportPrivateUsage]


def _value(tensor: Tensor) -> Tensor | None:
    return getattr(tensor, "_known", None)


def _attention_flops(
    *,
    batch: int,
    heads: int,
    queries: int,
    keys: int,
    head_dim: int,
    causal: bool,
    grad_out: Tensor | None = None,
    **_: Any,
) -> int:
    """Two products forward, five backward, of which one computes the scores again (Dao 2023, section 3.1)."""
    products = 2 if grad_out is None else 5
    scores = batch * heads * queries * keys
    return products * 2 * scores * head_dim // (2 if causal else 1)


def _int8_matmul_flops(*, rows: int, columns: int, depth: int, **_: Any) -> int:
    return 2 * rows * columns * depth


def _weight_grad_flops(*, rows: int, out_features: int, in_features: int, **_: Any) -> int:
    return 2 * rows * out_features * in_features


def _no_flops(**_: Any) -> int:
    return 0


_KERNEL_FLOPS: dict[str, Callable[..., int]] = {
    "attention": _attention_flops,
    "int8_matmul": _int8_matmul_flops,
    "weight_grad": _weight_grad_flops,
}
"""Of compiled code, which torch's counter can't look into."""
