"""Undocumented parts of torch that a plan needs, in one place, so that a version without them is noticed at once.

Storages without memory have no documented substitute: tensors of the device "meta" take other paths through a model
than a CPU's, and torch's fake tensors take 0.3 ms for each operation, five times as long: both are only asked for the
layouts of the tensors that operations return, once each.
"""

import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, replace
from functools import cache
from itertools import count
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only
from torch.utils.flop_counter import flop_registry

from anyformer.errors import UserError
from anyformer.kernels.operation import OPERATIONS

try:
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.testing._internal.distributed.fake_pg import FakeStore as FakeStore
    from torch.utils._python_dispatch import TorchDispatchMode as TorchDispatchMode
    from torch.utils._python_dispatch import _disable_current_modes  # pyright: ignore[reportPrivateUsage]

    no_modes: Callable[[], AbstractContextManager[Any]] = _disable_current_modes
    _c: Any = torch._C  # pyright: ignore[reportPrivateUsage]
    _storage_at: Callable[[int, torch.device, int], torch.UntypedStorage] = _c._construct_storage_from_data_pointer
    _mode: Callable[[Any], Any] = _c._get_dispatch_mode
    _fake: Any = _c._TorchDispatchModeKey.FAKE
    _graph_task: Callable[[], int] = _c._current_graph_task_id
    _kernel: Callable[[str, str], bool] = _c._dispatch_has_kernel_for_dispatch_key
except (ImportError, AttributeError) as error:
    raise UserError(
        f"anyformer plan needs parts of torch that version {torch.__version__} lacks ({error}): use torch 2.9 to 2.13."
    ) from error

_CPU = torch.device("cpu")
_ADDRESSES = count(1 << 56, 64)
"""Addresses that no processor takes, each for one storage: FSDP tells storages by them."""


def storage_without_memory(size: int) -> torch.UntypedStorage:
    """A CPU's storage of so many bytes that lies nowhere."""
    return _storage_at(next(_ADDRESSES), _CPU, size)


def asks_for_shapes() -> bool:
    """Whether a DTensor is asking torch's fake tensors what an operation returns."""
    return _mode(_fake) is not None


@cache
def has_cpu_kernel(operator: str) -> bool:
    """Whether an operator is computed by code for CPUs, and not made of others."""
    return _kernel(operator, "CPU")


_aten = torch.ops.aten
_DRAWS = {"uniform_", "normal_", "random_", "bernoulli_"}
_READS = {_aten._local_scalar_dense.default, _aten.item.default, _aten.is_nonzero.default}
_INDEXING = {_aten.index.Tensor, _aten.index_put.default, _aten._index_put_impl_.default}


@cache
def kind_of(func: Any) -> str:
    """The kind of a function that torch calls, each of which is simulated in its own way: one of these, or other."""
    name, is_counted = func._schema.name.partition("::")[2], func._overloadpacket in flop_registry
    has_kernel = is_counted or func.namespace == "prim" or has_cpu_kernel(func.name())
    kinds = {
        "draw": name in _DRAWS,
        "read": func in _READS,
        "indexing": func in _INDEXING,
        "sum": func is _aten.add.Tensor,
        "ours": func.namespace == "anyformer" and name in OPERATIONS,
        "counted": is_counted,
        "composite": not has_kernel and func._can_decompose(),
        "view": returns_view(func) or func.namespace == "profiler",
        "communication": func.namespace == "c10d",
    }
    return next((kind for kind, holds in kinds.items() if holds), "other")


def called_by_autograd() -> bool:
    """Whether the function that a dispatch mode is told of was called by autograd's engine, and by no backward."""
    if _graph_task() == -1:
        return False
    frame: Any = sys._getframe(1)  # pyright: ignore[reportPrivateUsage]
    while frame.f_code.co_name != "__torch_dispatch__":
        frame = frame.f_back
    frame = frame.f_back
    while "_dynamo" in frame.f_code.co_filename or frame.f_code.co_filename.endswith("_compile.py"):
        frame = frame.f_back
    return "run_backward" in frame.f_code.co_name


@dataclass(frozen=True, slots=True)
class Layout:
    """Shape, strides and dtype of a tensor that a function returns.

    Attributes:
        viewed: number of the argument that has its memory, and where in there it begins; None: it has its own.
    """

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype
    viewed: tuple[int, int] | None = None

    @property
    def size(self) -> int:
        """Bytes from the first element to the last."""
        if 0 in self.shape:
            return 0
        steps = zip(self.shape, self.stride, strict=True)
        return self.dtype.itemsize * (1 + sum((length - 1) * stride for length, stride in steps))


_DIFFERENT_BY_DEVICE = {torch.ops.aten.native_layer_norm.default}
"""Functions whose results are of another dtype on the device "meta" than on a CPU."""
_LAYOUTS: dict[Any, Any] = {}
"""Layouts of results, by function and layouts of the arguments."""


def layout(tensor: Tensor) -> Layout:
    """The layout of a tensor."""
    return Layout(tuple(tensor.shape), tensor.stride(), tensor.dtype)


def results(func: Any, args: Any, kwargs: Any, tensors: Sequence[Tensor], empty: Callable[[Layout], Tensor]) -> Any:
    """Results of a function, without data."""
    key = func, _key(args), _key(kwargs)
    if key not in _LAYOUTS:
        _LAYOUTS[key] = _ask(func, args, kwargs, tensors)
    return _made(_LAYOUTS[key], tensors, empty)


def _made(layouts: Any, tensors: Sequence[Tensor], empty: Callable[[Layout], Tensor]) -> Any:
    # No function inside the one above: one that calls itself would keep the tensors until garbage is collected.
    if isinstance(layouts, list | tuple):
        return type(layouts)([_made(each, tensors, empty) for each in layouts])
    if not isinstance(layouts, Layout):
        return layouts
    if layouts.viewed is None:
        return empty(layouts)
    argument, offset = layouts.viewed
    return tensors[argument].as_strided(layouts.shape, layouts.stride, offset)


def _key(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.shape, value.stride(), value.dtype
    if isinstance(value, list | tuple):
        return tuple(map(_key, value))
    if isinstance(value, dict):
        return tuple((name, _key(each)) for name, each in value.items())
    return type(value), value  # 1, 1.0 and True are equal, and their results are not


def _ask(func: Any, args: Any, kwargs: Any, tensors: Sequence[Tensor]) -> Any:
    """Results of a function, with layouts in the place of tensors: of tensors on the device "meta" if they tell."""
    with no_modes():
        if func not in _DIFFERENT_BY_DEVICE:
            with suppress(NotImplementedError, RuntimeError):
                devices = {name for name, value in kwargs.items() if isinstance(value, torch.device)}
                return _answer(func, args, {**kwargs, **dict.fromkeys(devices, torch.device("meta"))}, tensors, "meta")
        with _fake_mode():
            return _answer(func, args, kwargs, tensors, "cpu")


def _answer(func: Any, args: Any, kwargs: Any, tensors: Sequence[Tensor], device: str) -> Any:
    alike = [torch.empty_strided(each.shape, each.stride(), dtype=each.dtype, device=device) for each in tensors]
    storages = [each.untyped_storage() for each in alike]
    rest = iter(alike)
    args, kwargs = tree_map_only(Tensor, lambda _: next(rest), (args, kwargs))

    def viewed(result: Tensor) -> Layout:
        same = (number for number, storage in enumerate(storages) if storage is result.untyped_storage())
        argument = next(same, None)
        viewed = None if argument is None else (argument, int(result.storage_offset()))
        return replace(layout(result), viewed=viewed)

    return tree_map_only(Tensor, viewed, func(*args, **kwargs))


@cache
def _fake_mode() -> FakeTensorMode:
    return FakeTensorMode()  # it imports torch's compiler, which takes a second


def tensors_of(value: Any) -> list[Tensor]:
    """All tensors in a function's arguments or results."""
    if isinstance(value, Tensor):
        return [value]
    found: list[Tensor] = []
    for each in value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ():
        if isinstance(each, Tensor):
            found.append(each)
        elif isinstance(each, list | tuple | dict):
            found += tensors_of(each)
    return found


@cache
def returns_view(func: Any) -> bool:
    """Whether a function returns memory of its arguments."""
    return any(each.alias_info is not None and not each.alias_info.is_write for each in func._schema.returns)


def written(func: Any, args: Any, kwargs: Any) -> Any:
    """Results of a function that writes into its arguments."""
    outputs = [
        kwargs[argument.name] if argument.name in kwargs else args[index]
        for index, argument in enumerate(func._schema.arguments)
        if argument.alias_info is not None and argument.alias_info.is_write
    ]
    count = len(func._schema.returns)
    return None if not count else outputs[0] if count == 1 else tuple(outputs[:count])
