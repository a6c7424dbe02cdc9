"""``x @ weight.T`` of rows that each have one of several matrices: one product for the rows of each matrix."""

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd.function import once_differentiable

from anyformer.dtensor import is_dtensor
from anyformer.kernels.activation import recomputed_in_backward
from anyformer.kernels.autocast import as_rows, matmul_dtype
from anyformer.kernels.cpu import matmul as products
from anyformer.kernels.cpu.library import is_intercepted
from anyformer.kernels.linear import Matmul, quantized_input_grad, quantized_product
from anyformer.kernels.operation import operation
from anyformer.kernels.packed_weight import BLOCK_ROWS, PackedWeight

_grouped_mm: Any = torch.ops.aten._grouped_mm
_ALIGNMENT = 16
"""Bytes of which rows of torch's grouped product are multiples."""
_BLOCK = 64
"""Rows of which oneDNN's products are multiples here: it prepares itself for each size anew, which takes 0.5 ms."""


class Groups(NamedTuple):
    """Rows sorted by group."""

    order: Int[Tensor, " rows"]
    """Index of each sorted row among the rows as they were."""
    inverse: Int[Tensor, " rows"]
    """Index of each row among the sorted ones."""
    ends: Int[Tensor, " groups"]
    """Where each group ends among the sorted rows."""


def sort_by_group(group: Int[Tensor, " rows"], count: int) -> Groups:
    """Sort rows by their group, of `count`; those of one group keep their order."""
    in_order, order = group.sort(stable=True)
    rows = torch.arange(len(group), device=group.device)
    inverse = torch.empty_like(order).scatter_(0, order, rows)
    every = torch.arange(count, device=group.device, dtype=group.dtype)
    return Groups(order, inverse, torch.searchsorted(in_order, every, right=True, out_int32=True))


def gather_groups(x: Float[Tensor, "tokens width"], groups: Groups) -> Float[Tensor, "rows width"]:
    """The sorted rows, of tokens each of which is as many rows, one after another."""
    return _gather(x, groups.order, groups.inverse)


def scatter_groups(x: Float[Tensor, "rows width"], groups: Groups) -> Float[Tensor, "rows width"]:
    """The sorted rows as they were."""
    return _gather(x, groups.inverse, groups.order)


@operation("gather_groups")
def _gather(x: Tensor, order: Tensor, inverse: Tensor) -> Tensor:
    copies = len(order) // len(x)
    return x.index_select(0, order if copies == 1 else order // copies)


@operation("gather_groups_grad")
def _gather_grad(grad: Tensor, inverse: Tensor, tokens: int) -> Tensor:
    rows = grad.index_select(0, inverse)
    return rows if len(rows) == tokens else rows.view(tokens, -1, rows.shape[1]).sum(dim=1)


_gather.register_autograd(_gather_grad, saved=lambda inputs, _, __: (inputs[2], len(inputs[0])))


def grouped_linear(
    input: Float[Tensor, "rows inputs"],
    weight: Float[Tensor, "outputs_of_all inputs"],
    ends: Int[Tensor, " groups"],
    *,
    matmul: Matmul = "float",
) -> Float[Tensor, "rows outputs"]:
    """``input @ weight.T`` with the matrix of each row's group.

    Args:
        input: Rows, sorted by group.
        weight: The matrices of the groups, one below another.
        ends: Where the rows of each group end.
        matmul: As of `linear`.
    """
    with recomputed_in_backward(input):
        return _grouped(as_rows(input, matmul_dtype(input)), weight, ends, matmul == "int8")


def rows_by_group(
    input: Float[Tensor, " outputs_of_all"], ends: Int[Tensor, " groups"], rows: int
) -> Float[Tensor, "rows outputs"]:
    """The part of each row's group, of rows that are sorted by group."""
    group = torch.searchsorted(ends, torch.arange(rows, device=ends.device, dtype=ends.dtype), right=True)
    return input.unflatten(0, (len(ends), -1)).index_select(0, group)


def _like_output(x: Tensor, weight: Tensor, ends: Tensor, int8: bool) -> Tensor:
    return x.new_empty(len(x), len(weight) // len(ends))


@operation("grouped_linear", fake=_like_output)
def _grouped(x: Tensor, weight: Tensor, ends: Tensor, int8: bool) -> Tensor:
    x, matrices = x.detach(), weight.detach().unflatten(0, (len(ends), -1))
    if _torch_groups(x, matrices):
        return _grouped_mm(x, matrices.to(x.dtype).mT, ends)
    out = x.new_empty(len(x), matrices.shape[1])
    matrices = matrices if int8 else _cast_for_onednn(matrices, x)
    for group, rows in each_group(ends, len(x)):
        _multiply_rows(x[rows], matrices[group], out[rows], int8)
    return out


def _like_gradients(
    grad: Tensor, x: Tensor, weight: Tensor, ends: Tensor, int8: bool, needed: list[bool]
) -> tuple[Tensor, Tensor]:
    return (
        torch.empty_like(x) if needed[0] else x.new_empty(0),
        torch.empty_like(weight) if needed[1] else weight.new_empty(0),
    )


@operation("grouped_linear_grad", fake=_like_gradients)
def _grouped_grad(
    grad: Tensor, x: Tensor, weight: Tensor, ends: Tensor, int8: bool, needed: list[bool]
) -> tuple[Tensor, Tensor]:
    """The gradients of x and weight; one that isn't needed is empty."""
    grad, x, matrices = grad.contiguous(), x.detach(), weight.detach().unflatten(0, (len(ends), -1))
    if _torch_groups(x, matrices):
        grad_x = _grouped_mm(grad, matrices.to(x.dtype), ends) if needed[0] else x.new_empty(0)
        if not needed[1]:
            return grad_x, weight.new_empty(0)
        return grad_x, _grouped_mm(grad.mT, x, ends).to(weight.dtype).flatten(0, 1)
    grad_x, grad_weight = _like_gradients(grad, x, weight, ends, int8, needed)
    grads = grad_weight.unflatten(0, (len(ends), -1))
    matrices = _cast_for_onednn(matrices, x) if needed[0] and not int8 else matrices
    for group, rows in each_group(ends, len(x)):
        if needed[0]:
            _multiply_rows(grad[rows], matrices[group].t(), grad_x[rows], int8)
        if needed[1]:
            _sum_products(grad[rows], x[rows], grads[group], int8)
    return grad_x, grad_weight


_grouped.register_autograd(_grouped_grad, saved=lambda inputs, _, needed: (*inputs, list(needed)))


def _torch_groups(x: Tensor, matrices: Tensor) -> bool:
    """Whether torch has one product for all groups. On a CPU it is a loop as well."""
    aligned = all(size * x.dtype.itemsize % _ALIGNMENT == 0 for size in matrices.shape[1:])
    return x.is_cuda and x.dtype == torch.bfloat16 and aligned and torch.cuda.get_device_capability(x.device) >= (8, 0)


def each_group(ends: Tensor, count: int) -> Iterable[tuple[int, slice]]:
    """The number of each group and its rows, of `count`."""
    return enumerate(_slices(ends, count))


def _slices(ends: Tensor, count: int) -> list[slice]:
    """The rows of each group; of tensors without memory all groups are alike."""
    if ends.is_meta or is_intercepted() or isinstance(ends, FakeTensor):
        last = [count * (group + 1) // len(ends) for group in range(len(ends))]
    else:
        last = ends.tolist()
    return [slice(start, end) for start, end in zip([0, *last], last, strict=False)]


def _uses_onednn(x: Tensor) -> bool:
    """Whether products in the dtype of x are oneDNN's, and no kernel of this package."""
    return x.device.type == "cpu" and x.dtype == torch.bfloat16 and not products.supports_bf16(x, x.dtype)


def _cast_for_onednn(matrices: Tensor, x: Tensor) -> Tensor:
    """All matrices in the dtype of x at once, for each product would convert its own."""
    return matrices.to(x.dtype) if _uses_onednn(x) else matrices


def _multiply_rows(left: Tensor, right: Tensor, out: Tensor, int8: bool) -> None:
    """Write ``left @ right.T``; rows beyond the last whole block are computed with some before them."""
    whole = len(left) // _BLOCK * _BLOCK
    is_whole = whole in (0, len(left)) or _is_int8(left, right, int8) or not _uses_onednn(left)
    for rows in (slice(None),) if is_whole else (slice(whole), slice(-_BLOCK, None)):
        _multiply(left[rows], right, out[rows], int8)


def _sum_products(left: Tensor, right: Tensor, out: Tensor, int8: bool) -> None:
    """Write ``left.T @ right``; rows beyond the last whole block make one with zeros."""
    whole = len(left)
    if _uses_onednn(left) and not _is_int8(left.t(), right.t(), int8):
        whole -= whole % _BLOCK
    _multiply(left[:whole].t(), right[:whole].t(), out, int8)
    if rest := len(left) - whole:
        left, right = (F.pad(rows[whole:], (0, 0, 0, _BLOCK - rest)) for rows in (left, right))
        out += left.t() @ right


def _multiply(left: Tensor, right: Tensor, out: Tensor, int8: bool) -> None:
    """Write ``left @ right.T`` to out, 0 where there is nothing to sum."""
    if not left.numel():
        out.zero_()
    elif _is_int8(left, right, int8):
        products.int8_matmul(left, right, out=out)
    elif products.supports_bf16(left, left.dtype):
        # Groups have other sizes in every step, and torch's library prepares itself for each size anew.
        products.bf16_matmul(left, right, out=out)
    elif products.fp32_is_faster(left, right, left.dtype) and out.dtype == left.dtype:
        products.fp32_matmul(left, right, out=out)
    elif out.dtype == left.dtype:
        torch.mm(left, right.to(left.dtype).t(), out=out)
    else:
        out.copy_(torch.mm(left, right.to(left.dtype).t()))


def _is_int8(left: Tensor, right: Tensor, int8: bool) -> bool:
    """Whether ``left @ right.T`` is computed in int8, where that was asked for."""
    is_supported = int8 and left.device.type == "cpu" and products.supports_int8()
    return is_supported and products.int8_is_faster(len(left), *right.shape)


def quantized_grouped_linear(
    input: Float[Tensor, "rows inputs"], weight: PackedWeight, ends: Int[Tensor, " groups"]
) -> Float[Tensor, "rows outputs"]:
    """`grouped_linear` of a quantized weight, whose matrices are whole blocks of rows; the input gets a gradient."""
    if is_dtensor(weight.integers):
        return _SpreadQuantized.apply(input, weight, ends)  # pyright: ignore[reportReturnType]
    return _quantized(input, *weight, ends)


class _SpreadQuantized(torch.autograd.Function):
    """The product of a weight that is put together for it, and once more for the gradient."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: PackedWeight, ends: Tensor) -> Tensor:
        ctx.weight, ctx.ends, ctx.inputs = weight, ends, input.shape[1]
        return _quantized(input, *weight.whole(), ends)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        weight: PackedWeight = ctx.weight.whole()
        return _quantized_grad(grad_outputs[0], *weight, ctx.ends, ctx.inputs), None, None


def _like_quantized(
    x: Tensor, integers: Tensor, scales: Tensor, minima: Tensor | None, rows: int, ends: Tensor
) -> Tensor:
    return x.new_empty(len(x), rows // len(ends))


@operation("quantized_grouped_linear", fake=_like_quantized)
def _quantized(x: Tensor, integers: Tensor, scales: Tensor, minima: Tensor | None, rows: int, ends: Tensor) -> Tensor:
    weight = PackedWeight(integers, scales, minima, rows)
    x, out = x.detach(), x.new_empty(len(x), rows // len(ends))
    for group, own in each_group(ends, len(x)):
        if own.start < own.stop:
            out[own] = quantized_product(x[own], _matrix(weight, group, len(ends)), None)
    return out


@operation("quantized_grouped_linear_grad")
def _quantized_grad(
    grad: Tensor, integers: Tensor, scales: Tensor, minima: Tensor | None, rows: int, ends: Tensor, inputs: int
) -> Tensor:
    weight = PackedWeight(integers, scales, minima, rows)
    grad_x = grad.new_empty(len(grad), inputs)
    for group, own in each_group(ends, len(grad)):
        if own.start < own.stop:
            grad_x[own] = quantized_input_grad(grad[own], _matrix(weight, group, len(ends)), lambda: None)
    return grad_x


_quantized.register_autograd(_quantized_grad, saved=lambda inputs, _, __: (*inputs[1:], inputs[0].shape[1]))


def _matrix(weight: PackedWeight, group: int, groups: int) -> PackedWeight:
    blocks = weight.rows // groups // BLOCK_ROWS
    return weight.blocks(group * blocks, (group + 1) * blocks)
