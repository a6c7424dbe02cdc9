"""Checks of shapes and types while the tests run: of each combination of them once, and not of each call.

jaxtyping needs 0.1 ms for a call, which is more than most of our functions take with the tiny tensors of tests. What
it says follows from the types, shapes and dtypes of arguments and result. A call with those of an earlier one isn't
checked again, and without slow tests neither are those of a function that has had many.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import threading
import types
from collections import deque
from collections.abc import Callable
from typing import Any

import jaxtyping
import numpy as np
import torch

from tests import examples

_jaxtyped = jaxtyping.jaxtyped

_ARRAYS = (torch.Tensor, np.ndarray)
_MOST_IN_GATE = 16
"""Combinations of a function's types and shapes that each worker checks where slow tests are left out."""
_checks: dict[int, tuple[types.CodeType, dict[Any, set[Any]]]] = {}
"""Of each function, by the address of its code, which all that an inner function is made to share: the arguments and
results that were checked."""


def install(modules: list[str]) -> None:
    """Check the calls of all functions of modules that are imported from now on."""
    jaxtyping.jaxtyped = checked  # the decorator that the hook writes above each function
    jaxtyping.install_import_hook(modules, "beartype.beartype")


def checked(function: Any = None, *, typechecker: Any) -> Any:
    """A function, method or class whose calls are checked, as `jaxtyping.jaxtyped` does, unless equal ones were."""
    if function is None:
        return functools.partial(checked, typechecker=typechecker)
    if inspect.isclass(function):
        if dataclasses.is_dataclass(function) and "__init__" in vars(function):
            function.__init__ = checked(function.__init__, typechecker=typechecker)
        return function
    if not isinstance(function, types.FunctionType):
        return _jaxtyped(function, typechecker=typechecker)

    each_call = functools.cache(lambda: _jaxtyped(function, typechecker=typechecker))
    # One for all results: to make such a function takes longer than most tests' functions themselves.
    made = threading.local()
    each_result = functools.cache(lambda: _jaxtyped(_returning(function, made), typechecker=typechecker))
    _, results = _checks.setdefault(id(function.__code__), (function.__code__, {}))

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        __tracebackhide__ = True
        if (examples.IN_GATE and len(results) >= _MOST_IN_GATE) or torch.compiler.is_compiling():
            return function(*args, **kwargs)
        key = tuple(map(_describe, args)), tuple((name, _describe(value)) for name, value in kwargs.items())
        if key not in results:
            result = each_call()(*args, **kwargs)
            results[key] = {_describe(result)}
            return result
        result = function(*args, **kwargs)
        if (described := _describe(result)) not in results[key]:
            made.result = result
            each_result()(*args, **kwargs)
            del made.result
            results[key].add(described)
        return result

    return call


def _describe(value: Any) -> Any:
    """Everything that annotations of a value can refer to, as a key of a dict.

    Numbers are described by their type: no annotation has one in `Literal`, or as a size in braces.
    """
    kind = type(value)
    if isinstance(value, _ARRAYS):
        return kind, tuple(value.shape), value.dtype
    if kind is str or isinstance(value, type):
        return value
    if kind is tuple:
        return kind, *map(_describe, value)
    if kind in (list, set, frozenset, deque, dict):
        items = set(map(_describe, value.items() if kind is dict else value))
        # beartype checks one item, a random one: if they differ, each call is checked.
        return (kind, *items) if len(items) < 2 else object()
    return kind


def _returning(function: types.FunctionType, made: threading.local) -> Callable[..., Any]:
    """A function with the signature of another that does nothing but return the result that was made."""

    def body(*args: Any, **kwargs: Any) -> Any:
        return made.result

    # Annotations are read with the globals of the module that has them.
    copy = types.FunctionType(body.__code__, function.__globals__, closure=body.__closure__)
    return functools.update_wrapper(copy, function)
