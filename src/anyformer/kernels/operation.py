"""Compiled operations that autograd differentiates and that torch.compile keeps whole."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor, nn
from torch.autograd.function import Function, once_differentiable

_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")


def opaque(fake: Callable[..., Any]) -> Callable[[Callable[_Arguments, _Result]], Callable[_Arguments, _Result]]:
    """Register a function of tensors as an operation that torch.compile does not look into (`torch.library.custom_op`).

    Eager calls skip the dispatcher, which costs more than some of these functions.

    Args:
        fake: Returns empty tensors of the result's shapes, dtypes and strides.
    """

    def register(function: Callable[_Arguments, _Result]) -> Callable[_Arguments, _Result]:
        registered = torch.library.custom_op(f"anyformer::{function.__name__}", function, mutates_args=())
        registered.register_fake(fake)

        @wraps(function)
        def call(*args: _Arguments.args, **kwargs: _Arguments.kwargs) -> _Result:
            traced = torch.compiler.is_compiling() or any(
                isinstance(value, Tensor) and type(value) not in (Tensor, nn.Parameter) for value in args
            )
            return registered(*args, **kwargs) if traced else function(*args, **kwargs)

        return call

    return register


class Operation:
    """A differentiable operation.

    torch.compile keeps it as one node of its graph. In eager mode it is an `autograd.Function`, a call of which takes a
    quarter of the time of a registered operation's. It is differentiable once.

    Args:
        forward: Takes tensors and numbers, annotated as `torch.library.custom_op` asks for.
        fake: Returns empty tensors of the results' shapes, dtypes and strides.
        setup_context: Saves what the backward pass needs: ``(ctx, inputs, output)``.
        backward: From ``(ctx, *grad_outputs)`` to a gradient, or None, for each input.
    """

    def __init__(
        self,
        forward: Callable[..., Any],
        fake: Callable[..., Any],
        setup_context: Callable[[Any, tuple[Any, ...], Any], None],
        backward: Callable[..., Any],
    ) -> None:
        self._registered = torch.library.custom_op(f"anyformer::{forward.__name__}", forward, mutates_args=())
        self._registered.register_fake(fake)
        self._registered.register_autograd(backward, setup_context=setup_context)
        methods = {"forward": forward, "setup_context": setup_context, "backward": once_differentiable(backward)}
        static = {name: staticmethod(method) for name, method in methods.items()}
        self._function: Any = type(forward.__name__, (Function,), static)

    def __call__(self, *inputs: Any) -> Any:
        """The outputs of `forward`."""
        return self._registered(*inputs) if torch.compiler.is_compiling() else self._function.apply(*inputs)
