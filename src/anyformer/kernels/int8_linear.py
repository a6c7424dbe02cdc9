"""Products of 8-bit integers in training (SwitchBack: Wortsman et al. 2023, section 2).

CPUs multiply integers of 8 bits twice as fast as bfloat16: with VNNI three to five times as fast as float32, with AMX
fifteen times. So products are computed as ``(a_int @ b_int) * a_scale * b_scale``, where each row of a and each column
of b is scaled to -127 ... 127 and rounded: an error of about 1 % of a product of numbers that are normally distributed.
Nothing that was quantized is kept: weights, their gradients and the optimizer are float32, and activations are in the
dtype that the CPU is fast in otherwise.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from anyformer.kernels.autocast import as_rows, matmul_dtype
from anyformer.kernels.cpu import int8_matmul

_SMALLEST = torch.finfo(torch.float32).tiny
"""A scale below it is inexact: what has one counts as 0."""


def supports_int8(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> bool:
    """Whether gradients are recorded, and the products are large enough to be faster than in the input's dtype.

    Operands whose shapes don't agree are left to torch, which refuses them.
    """
    agree = input.shape[-1] == weight.shape[1] and (bias is None or bias.shape == weight.shape[:1])
    if not agree or not torch.is_grad_enabled() or input.device.type != "cpu":
        return False
    rows = input.numel() // max(input.shape[-1], 1)
    return int8_matmul.is_faster(rows, *weight.shape)


def int8_linear(
    input: Float[Tensor, "*batch inputs"],
    weight: Float[Tensor, "outputs inputs"],
    bias: Float[Tensor, " outputs"] | None,
) -> Float[Tensor, "*batch outputs"]:
    """``input @ weight.T + bias`` in products of 8 bits, in the backward pass as well.

    The result has autocast's dtype, or that of the input. It is differentiable once. An infinite number or a NaN makes
    its whole row infinite or NaN, so it is noticed. The first call compiles (some seconds, once a machine).
    """
    rows = as_rows(input, matmul_dtype(input))
    out: Tensor = _Int8Linear.apply(rows, weight, bias)  # pyright: ignore[reportAssignmentType]
    return out.view(*input.shape[:-1], len(weight))


class _Int8Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        # torch.compile asks what it is given for its gradient, and x, which is no leaf, would warn of that.
        return _matmul(x.detach(), weight.detach(), None if bias is None else bias.detach(), x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, weight = (tensor.detach() for tensor in ctx.saved_tensors)
        wants_x, wants_weight, wants_bias = ctx.needs_input_grad
        grad = grad_outputs[0].detach().contiguous()
        row_sums = grad.new_empty(grad.shape[1], dtype=torch.float32) if wants_bias else None
        return (
            _matmul(grad, weight.t(), None, grad.dtype) if wants_x else None,
            _matmul(grad.t(), x.t(), None, weight.dtype, row_sums) if wants_weight or wants_bias else None,
            None if row_sums is None else row_sums.to(weight.dtype),
        )


def _matmul(
    left: Tensor, right: Tensor, bias: Tensor | None, dtype: torch.dtype, row_sums: Tensor | None = None
) -> Tensor:
    """``left @ right.T + bias`` in a dtype, from quantized rows; the sums of left's rows go to `row_sums`.

    Compiled code, for quantizing and scaling one step at a time costs as much as the products of integers gain.
    """
    compiling = torch.compiler.is_compiling()
    if not int8_matmul.supports():
        function = _reference if compiling else _compiled_reference()
        return function(left, right, bias, dtype, row_sums)
    if compiling:
        _sum_rows(left, row_sums)
        return int8_matmul_op(left, right, bias, dtype)
    out = torch.empty(len(left), len(right), dtype=dtype)
    return int8_matmul.int8_matmul(left, right, bias, out=out, sums=row_sums)


@torch.library.custom_op("anyformer::int8_matmul", mutates_args=())
def int8_matmul_op(left: Tensor, right: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    """The product as torch.compile sees it."""
    return int8_matmul.int8_matmul(left, right, bias, out=torch.empty(len(left), len(right), dtype=dtype))


@int8_matmul_op.register_fake
def _(left: Tensor, right: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    return left.new_empty(len(left), len(right), dtype=dtype)


def _reference(
    left: Tensor, right: Tensor, bias: Tensor | None, dtype: torch.dtype, row_sums: Tensor | None = None
) -> Tensor:
    _sum_rows(left, row_sums)
    rows, row_scales = _quantize(left)
    columns, column_scales = _quantize(right)
    product = torch.ops.aten._int_mm(rows, columns.t()) * row_scales * column_scales.t()
    return (product if bias is None else product + bias).to(dtype)


def _sum_rows(left: Tensor, row_sums: Tensor | None) -> None:
    if row_sums is not None:
        torch.sum(left, dim=1, dtype=row_sums.dtype, out=row_sums)


def _quantize(x: Tensor) -> tuple[Tensor, Tensor]:
    """Integers of 8 bits and their scales, one a row."""
    x = x.float()
    scale = x.abs().amax(dim=1, keepdim=True) / int8_matmul.LARGEST
    inverse = torch.where(scale >= _SMALLEST, 1 / scale, 0)
    return (x * inverse).round().to(torch.int8), scale


@cache
def _compiled_reference() -> Callable[..., Tensor]:
    return torch.compile(_reference, dynamic=True)
