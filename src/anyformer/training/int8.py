"""Products of 8-bit integers in training (SwitchBack: Wortsman et al. 2023, section 2).

CPUs with VNNI but without AMX multiply integers of 8 bits three to five times as fast as float32, and twice as fast as
bfloat16. So the products of linear layers, and of the vocabulary (see `kernels.cross_entropy`), are computed as
``(a_int @ b_int) * a_scale * b_scale``, where each row of a and each column of b is scaled to -127 ... 127 and rounded:
an error of about 1 % of a product of numbers that are normally distributed. Nothing that was rounded is kept: weights,
their gradients and the optimizer are float32, and what is between two products is in the format that the CPU is fast in
otherwise.
"""

from __future__ import annotations

from functools import cache
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable

from anyformer.kernels.cpu.int8_matmul import LARGEST, can_round, rounded_product, worth_rounding
from anyformer.training.rows import rows_of

_SMALLEST = torch.finfo(torch.float32).tiny
"""A scale below it is inexact: what has one counts as 0."""


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
    if not worth_rounding(dtype, *sizes):
        return F.linear(x, weight, bias)
    product: Tensor = _Linear.apply(rows_of(x, dtype), weight, bias)  # pyright: ignore[reportAssignmentType]
    return product.view(*x.shape[:-1], -1)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        # torch.compile asks what it is given for its gradient, and x, which is no leaf, would warn of that.
        return _product()(x.detach(), weight.detach(), None if bias is None else bias.detach(), x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, weight = (tensor.detach() for tensor in ctx.saved_tensors)
        wants_x, wants_weight, wants_bias = ctx.needs_input_grad
        gradient, product = grad_outputs[0].detach().contiguous(), _product()
        sums = gradient.new_empty(gradient.shape[1], dtype=torch.float32) if wants_bias else None
        return (
            product(gradient, weight.t(), None, gradient.dtype) if wants_x else None,
            product(gradient.t(), x.t(), None, weight.dtype, sums) if wants_weight or wants_bias else None,
            None if sums is None else sums.to(weight.dtype),
        )


class _Product(Protocol):
    def __call__(
        self, left: Tensor, right: Tensor, bias: Tensor | None, dtype: torch.dtype, sums: Tensor | None = None
    ) -> Tensor:
        """``left @ right.T + bias`` in a format, from rows that are rounded; the sums of left's rows go to `sums`."""
        ...


def _product() -> _Product:
    """Compiled code, for rounding and scaling one step at a time costs as much as the products of integers gain."""
    if can_round():
        return _known if torch.compiler.is_compiling() else _rounded
    return _plain if torch.compiler.is_compiling() else _compiled()


def _rounded(
    left: Tensor, right: Tensor, bias: Tensor | None, dtype: torch.dtype, sums: Tensor | None = None
) -> Tensor:
    return rounded_product(left, right, bias, out=torch.empty(len(left), len(right), dtype=dtype), sums=sums)


def _known(left: Tensor, right: Tensor, bias: Tensor | None, dtype: torch.dtype, sums: Tensor | None = None) -> Tensor:
    """The same for torch.compile, which looks into all else."""
    _sum(left, sums)
    return _opaque(left, right, bias, dtype)


@torch.library.custom_op("anyformer::rounded_product", mutates_args=())
def _opaque(left: Tensor, right: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    return _rounded(left, right, bias, dtype)


@_opaque.register_fake
def _(left: Tensor, right: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    return left.new_empty(len(left), len(right), dtype=dtype)


def _plain(left: Tensor, right: Tensor, bias: Tensor | None, dtype: torch.dtype, sums: Tensor | None = None) -> Tensor:
    _sum(left, sums)
    rows, row_scales = _quantized(left)
    columns, column_scales = _quantized(right)
    product = torch.ops.aten._int_mm(rows, columns.t()) * row_scales * column_scales.t()
    return (product if bias is None else product + bias).to(dtype)


def _sum(left: Tensor, sums: Tensor | None) -> None:
    if sums is not None:
        torch.sum(left, dim=1, dtype=sums.dtype, out=sums)


def _quantized(x: Tensor) -> tuple[Tensor, Tensor]:
    """Integers of 8 bits and their scales, one a row."""
    x = x.float()
    scale = x.abs().amax(dim=1, keepdim=True) / LARGEST
    inverse = torch.where(scale >= _SMALLEST, 1 / scale, 0)
    return (x * inverse).round().to(torch.int8), scale


@cache
def _compiled() -> _Product:
    return torch.compile(_plain, dynamic=True)
