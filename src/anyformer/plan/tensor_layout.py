"""Layouts of the tensors that operations return, asked once each of torch's tensors without memory."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from anyformer.plan.internals import FakeTensorMode, no_modes


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
