"""Compiled operations that autograd differentiates and that torch.compile keeps whole."""

from collections.abc import Callable, Sequence
from itertools import zip_longest
from typing import Any, Generic, ParamSpec, TypeVar

import torch
from torch import Tensor, nn
from torch.autograd.function import Function, once_differentiable

OPERATIONS: dict[str, Callable[..., Any]] = {}
"""The functions of all operations, by name."""

P = ParamSpec("P")
R = TypeVar("R")
F = TypeVar("F", bound=Callable[..., Any])
Saved = Callable[[tuple[Any, ...], tuple[Any, ...], tuple[bool, ...]], Sequence[Any]]


class Operation(Generic[P, R]):
    """A `torch.library.custom_op` with a shorter way in eager mode.

    torch.compile keeps it as one node of its graph. An eager call is one of the function, or of an `autograd.Function`,
    which takes a quarter of the time of a registered operation's.

    Args:
        name: Its name in a graph, after ``anyformer::``.
        function: Takes tensors and numbers, annotated as `torch.library.custom_op` asks for, the first a tensor.
        fake: Returns empty tensors like the results; None: the function does so for tensors without memory.
    """

    def __init__(self, name: str, function: Callable[P, R], fake: Callable[..., Any] | None = None) -> None:
        self.function = function
        OPERATIONS[name] = function
        schema = torch.library.infer_schema(function, mutates_args=())
        self._name = name
        self._registered: Any = torch.library.custom_op(
            f"anyformer::{name}", self._call, mutates_args=(), schema=schema
        )
        self._registered.register_fake(fake or function)
        self._differentiable: Any = None

    def register_autograd(self, backward: Callable[..., Any], *, saved: Saved) -> None:
        """Let autograd differentiate it, once.

        Args:
            backward: The gradients of its first inputs, from that of its first output and what was saved; those that
                are not needed may be anything.
            saved: What is kept for it, from the inputs, the outputs, and for each input whether it needs a gradient.
        """

        def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
            outputs = output if isinstance(output, tuple) else (output,)
            kept = saved(inputs, outputs, ctx.needs_input_grad)
            ctx.save_for_backward(*[part if isinstance(part, Tensor) else None for part in kept])
            ctx.constants = [None if isinstance(part, Tensor) else part for part in kept]
            ctx.set_materialize_grads(False)

        def gradients(ctx: Any, grad: Tensor, *_: None) -> tuple[Tensor | None, ...]:
            kept = zip(ctx.saved_tensors, ctx.constants, strict=True)
            grads = backward(grad, *[constant if tensor is None else tensor for tensor, constant in kept])
            grads = grads if isinstance(grads, tuple) else (grads,)
            return tuple([part if is_needed else None for part, is_needed in zip_longest(grads, ctx.needs_input_grad)])

        self._registered.register_autograd(gradients, setup_context=setup_context)

        # An autograd.Function with a setup_context of its own inspects its signature at each call.
        def forward(ctx: Any, *args: Any) -> Any:
            output: Any = self.function(*args)  # pyright: ignore[reportCallIssue]
            setup_context(ctx, args, output)
            return output

        methods = {"forward": staticmethod(forward), "backward": staticmethod(once_differentiable(gradients))}
        self._differentiable = type(self._name, (Function,), methods)

    def _call(self, *args: Any) -> Any:
        return self.function(*args)  # pyright: ignore[reportCallIssue]

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """The result of the function."""
        if torch.compiler.is_compiling() or type(args[0]) not in (Tensor, nn.Parameter):
            return self._registered(*args, **kwargs)
        differentiable = self._differentiable if torch.is_grad_enabled() else None
        function = self.function if differentiable is None else differentiable.apply
        return function(*args, **kwargs)


def operation(name: str, fake: Callable[..., Any] | None = None) -> Callable[[Callable[P, R]], Operation[P, R]]:
    """A decorator that makes an `Operation` of a function."""
    return lambda function: Operation(name, function, fake)


def constant_result(function: F) -> F:
    """A decorator of functions whose result never changes: torch.compile, which can't look into them, calls them once.

    `torch.compiler.assume_constant_result` does the same, but imports all of the compiler, which takes 80 MB.
    """
    function._dynamo_marked_constant = True  # pyright: ignore[reportFunctionMemberAccess]
    return function
