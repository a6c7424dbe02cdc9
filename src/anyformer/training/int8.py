"""Products of 8-bit integers in training (SwitchBack: Wortsman et al. 2023, section 2).

CPUs with VNNI but without AMX multiply integers of 8 bits three to five times as fast as float32, and twice as fast as
bfloat16. So the products of linear layers are computed as ``(a_int @ b_int) * a_scale * b_scale``, where each row of a
and each column of b is scaled to -127 ... 127 and rounded: an error of about 1 % of a product of numbers that are
normally distributed. Nothing that was rounded is kept: weights, their gradients and the optimiser are float32, and what
is between two products is in the format that the CPU is fast in otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable

_LARGEST = 127
_SMALLEST = torch.finfo(torch.float32).tiny
"""A scale below it is inexact: what has one counts as 0."""

_WORTH_IT = {torch.float32: 1 << 26, torch.bfloat16: 1 << 28}
"""Multiplications from which a product gains; smaller ones are faster in the format that they would have otherwise."""

_LONGEST = (1 << 31) // _LARGEST**2
"""Terms of a sum that is sure to fit 32 bits."""


class Int8Linear(nn.Linear):
    """A linear layer that learns by products of 8 bits. Asked without gradients, or to evaluate, it is an ordinary one.

    An ordinary one becomes it by its class alone (see `linear`): it has the same parameters, names and state.
    """

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, x: Float[Tensor, "*batch inputs"]
    ) -> Float[Tensor, "*batch outputs"]:
        """``x @ weight.T + bias``."""
        if self.training and torch.is_grad_enabled():
            return int8_linear(x, self.weight, self.bias)
        return F.linear(x, self.weight, self.bias)


def int8_linear(
    x: Float[Tensor, "*batch inputs"], weight: Float[Tensor, "outputs inputs"], bias: Float[Tensor, " outputs"] | None
) -> Float[Tensor, "*batch outputs"]:
    """``x @ weight.T + bias`` in products of 8 bits, on the way back as well; small products stay in autocast's format.

    The result has autocast's format, or that of x. It is differentiable once. An infinite number or a NaN makes its
    whole row infinite or NaN, so it is noticed.
    The first call compiles (some seconds, once a machine).
    """
    rows = x.numel() // max(x.shape[-1], 1)
    sizes = (rows, *weight.shape)
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
    # Transposed matrices of a single row or column are misread by torch's product.
    if math.prod(sizes) < _WORTH_IT.get(dtype, 0) or max(sizes) > _LONGEST or min(sizes) < 2:
        return F.linear(x, weight, bias)
    product: Tensor = _Linear.apply(x.reshape(rows, -1).to(dtype), weight, bias)  # pyright: ignore[reportAssignmentType]
    return product.view(*x.shape[:-1], -1)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        # torch.compile asks what it is given for its gradient, and x, which is no leaf, would warn of that.
        return _kernels().forward(x.detach(), weight.detach(), None if bias is None else bias.detach())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, weight = (tensor.detach() for tensor in ctx.saved_tensors)
        wants_x, wants_weight, wants_bias = ctx.needs_input_grad
        gradient = grad_outputs[0].detach().contiguous()
        return (
            _kernels().grad_x(gradient, weight) if wants_x else None,
            _kernels().grad_weight(gradient, x) if wants_weight else None,
            gradient.sum(dim=0, dtype=weight.dtype) if wants_bias else None,
        )


def _forward(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    rows, row_scales = _quantised(x, 1)
    columns, column_scales = _quantised(weight, 1)
    product = torch.ops.aten._int_mm(rows, columns.t()) * row_scales * column_scales.t()
    return (product if bias is None else product + bias).to(x.dtype)


def _grad_x(gradient: Tensor, weight: Tensor) -> Tensor:
    rows, row_scales = _quantised(gradient, 1)
    columns, column_scales = _quantised(weight, 0)
    return (torch.ops.aten._int_mm(rows, columns) * row_scales * column_scales).to(gradient.dtype)


def _grad_weight(gradient: Tensor, x: Tensor) -> Tensor:
    rows, row_scales = _quantised(gradient, 0)
    columns, column_scales = _quantised(x, 0)
    return torch.ops.aten._int_mm(rows.t(), columns) * row_scales.t() * column_scales


def _quantised(x: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Integers of 8 bits and their scales, one for all numbers along the dimension."""
    x = x.float()
    scale = x.abs().amax(dim=dim, keepdim=True) / _LARGEST
    inverse = torch.where(scale >= _SMALLEST, 1 / scale, 0)
    return (x * inverse).round().to(torch.int8), scale


@dataclass(frozen=True, slots=True)
class _Kernels:
    """The three products of a linear layer.

    Compiled, for rounding and scaling one step at a time costs as much as the products of integers gain; where all of
    a stack is compiled they are a part of that.
    """

    forward: Callable[[Tensor, Tensor, Tensor | None], Tensor]
    grad_x: Callable[[Tensor, Tensor], Tensor]
    grad_weight: Callable[[Tensor, Tensor], Tensor]


def _kernels() -> _Kernels:
    return _PLAIN if torch.compiler.is_compiling() else _compiled()


_PLAIN = _Kernels(_forward, _grad_x, _grad_weight)


@cache
def _compiled() -> _Kernels:
    def compiled(kernel: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return torch.compile(kernel, dynamic=True)

    return _Kernels(compiled(_forward), compiled(_grad_x), compiled(_grad_weight))
