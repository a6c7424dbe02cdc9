"""``x @ weight.T + bias``: in floating point, trained in 8-bit integers, or of a quantized weight."""

from collections.abc import Callable
from functools import cache
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd.function import once_differentiable

from anyformer.kernels.activation import recomputed_in_backward
from anyformer.kernels.autocast import as_rows, autocast_disabled, matmul_dtype
from anyformer.kernels.cpu import matmul as products
from anyformer.kernels.operation import operation
from anyformer.kernels.packed_weight import BLOCK_ROWS, PackedWeight, unpack
from anyformer.kernels.quantization import GROUP, dequantize

Matmul = Literal["float", "int8"]
"""How a linear layer multiplies while it is trained."""

_AMX_SIZE = 512
"""Inputs and outputs from which our product in bfloat16 is faster than torch's, where there is AMX."""

_CHUNK = 1 << 18
"""Weights that are dequantized at a time: they stay in the cache of a core until they are used."""

_SMALLEST = torch.finfo(torch.float32).tiny
"""A scale of int8 below it is inexact: what has one counts as 0."""


def linear(
    input: Float[Tensor, "*batch inputs"],
    weight: Float[Tensor, "outputs inputs"],
    bias: Float[Tensor, " outputs"] | None = None,
    *,
    matmul: Matmul = "float",
) -> Float[Tensor, "*batch outputs"]:
    """``input @ weight.T + bias``, as `torch.nn.functional.linear`.

    Args:
        matmul: "int8": where gradients are recorded, products of 8-bit integers, forward and backward, where these are
            faster (see `int8_linear`).
    """
    if not torch.is_grad_enabled():
        return _float_linear(input, weight, bias)
    with recomputed_in_backward(input):
        if matmul == "int8" and supports_int8(input, weight, bias):
            return int8_linear(input, weight, bias)
        if weight.requires_grad and products.bf16_is_faster(input, len(weight)):
            with autocast_disabled(input):
                lower = None if _is_ours(weight) else weight.detach().to(torch.bfloat16)
                out = bf16_linear(as_rows(input, torch.bfloat16), weight, bias, lower)
            return out.view(*input.shape[:-1], len(weight))
        return _float_linear(input, weight, bias)


def _float_linear(input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    if not products.fp32_is_faster(input, weight) or not _agree(input, weight, bias):
        return F.linear(input, weight, bias)
    out = fp32_linear(as_rows(input, torch.float32), weight, bias)
    return out.view(*input.shape[:-1], len(weight))


def _agree(input: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether the shapes agree; what does not is left to torch, which refuses it."""
    return input.shape[-1] == weight.shape[1] and (bias is None or bias.shape == weight.shape[:1])


def quantized_linear(
    input: Float[Tensor, "*batch inputs"],
    weight: PackedWeight,
    bias: Float[Tensor, " outputs"] | None = None,
    *,
    transposed: Callable[[], PackedWeight | None] = lambda: None,
) -> Float[Tensor, "*batch outputs"]:
    """``input @ weight.T + bias`` of a quantized weight, in the dtype of the input.

    Compiled code quantizes the input to 8 bits as well; torch dequantizes some rows of the weight at a time. The input
    gets a gradient, the weight none.

    Args:
        transposed: The transpose of the weight, quantized along its own rows, for compiled code to multiply the
            gradient with (see `packed_weight.transpose`); None: the weight is dequantized instead.
    """
    if torch.is_grad_enabled() and (input.requires_grad or (bias is not None and bias.requires_grad)):
        return _QuantizedLinear.apply(input, *weight, bias, transposed)  # pyright: ignore[reportReturnType]
    return quantized_product(input, weight, bias)


def quantized_product(
    input: Float[Tensor, "*batch inputs"], weight: PackedWeight, bias: Float[Tensor, " outputs"] | None
) -> Float[Tensor, "*batch outputs"]:
    """`quantized_linear` of tensors that record no gradients."""
    weight = weight.whole()
    agree = input.shape[-1] == weight.columns and (bias is None or bias.shape == (weight.rows,))
    if agree and products.supports_quantized(input):
        return products.quantized_matmul(input, weight, bias)
    blocks = blocks_at_a_time(weight)
    if torch.compiler.is_compiling() or weight.rows <= blocks * BLOCK_ROWS:
        return F.linear(input, dequantize(unpack(weight), input.dtype), bias)
    out = torch.empty(*input.shape[:-1], weight.rows, dtype=input.dtype, device=input.device)
    for block in range(0, len(weight.integers), blocks):
        rows = slice(block * BLOCK_ROWS, (block + blocks) * BLOCK_ROWS)
        part = unpack(weight.blocks(block, block + blocks))
        out[..., rows] = F.linear(input, dequantize(part, input.dtype), None if bias is None else bias[rows])
    return out


def blocks_at_a_time(weight: PackedWeight) -> int:
    """Blocks of rows of a quantized weight that torch dequantizes at a time."""
    return max(1, _CHUNK // (weight.columns * BLOCK_ROWS))


def quantized_input_grad(
    grad: Float[Tensor, "*batch outputs"], weight: PackedWeight, transposed: Callable[[], PackedWeight | None]
) -> Float[Tensor, "*batch inputs"]:
    """The gradient of the input of a `quantized_linear`, from that of its output."""
    matrix = transposed() if products.supports_quantized(grad) else None
    if matrix is None:
        return grad @ dequantize(unpack(weight.whole()), grad.dtype)
    if weight.rows % GROUP:
        grad = F.pad(grad, (0, -weight.rows % GROUP))  # as the matrix is
    return products.quantized_matmul(grad, matrix.whole(), None)


class _QuantizedLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,
        integers: Tensor,
        scales: Tensor,
        minima: Tensor | None,
        rows: int,
        bias: Tensor | None,
        transposed: Callable[[], PackedWeight | None],
    ) -> Tensor:
        ctx.weight, ctx.transposed = PackedWeight(integers, scales, minima, rows), transposed
        return quantized_product(input, ctx.weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        grad = grad_outputs[0]
        grad_input = None
        if ctx.needs_input_grad[0]:
            grad_input = quantized_input_grad(grad, ctx.weight, ctx.transposed)
        grad_bias = grad.flatten(0, -2).sum(0) if ctx.needs_input_grad[5] else None
        return grad_input, None, None, None, None, grad_bias, None


def supports_int8(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> bool:
    """Whether the products are large enough to be faster than in the input's dtype."""
    if not _agree(input, weight, bias) or input.device.type != "cpu":
        return False
    rows = input.numel() // max(input.shape[-1], 1)
    return products.int8_is_faster(rows, *weight.shape)


def int8_linear(
    input: Float[Tensor, "*batch inputs"],
    weight: Float[Tensor, "outputs inputs"],
    bias: Float[Tensor, " outputs"] | None,
) -> Float[Tensor, "*batch outputs"]:
    """``input @ weight.T + bias`` in products of 8-bit integers (SwitchBack: Wortsman et al. 2023, section 2).

    So is the backward pass. Each row of a and each column of b in ``a @ b`` is scaled to -127 ... 127 and rounded: an
    error of about 1% of a product of numbers that are normally distributed. Nothing that was quantized is kept.

    The result has autocast's dtype, or that of the input. It is differentiable once. An infinite number or a NaN makes
    its whole row infinite or NaN, so it is noticed. The first call compiles (some seconds, once a machine).
    """
    out = int8_product(as_rows(input, matmul_dtype(input)), weight, bias)
    return out.view(*input.shape[:-1], len(weight))


@operation("int8_linear")
def int8_product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``x @ weight.T + bias`` in the dtype of x."""
    # torch.compile asks what it is given for its gradient, and x, which is no leaf, would warn of that.
    return _int8_matmul(x.detach(), weight.detach(), None if bias is None else bias.detach(), x.dtype)


@operation("int8_linear_grad")
def int8_gradients(grad: Tensor, x: Tensor, weight: Tensor, needed: list[bool]) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of x, weight and bias; those that aren't needed are empty."""
    grad, x, weight = grad.contiguous(), x.detach(), weight.detach()
    grad_x = _int8_matmul(grad, weight.t(), None, grad.dtype) if needed[0] else grad.new_empty(0)
    row_sums = grad.new_empty(grad.shape[1], dtype=torch.float32) if needed[2] else None
    wants_weight = needed[1] or needed[2]
    grad_weight = _int8_matmul(grad.t(), x.t(), None, weight.dtype, row_sums) if wants_weight else grad.new_empty(0)
    return grad_x, grad_weight, grad.new_empty(0) if row_sums is None else row_sums.to(weight.dtype)


int8_product.register_autograd(int8_gradients, saved=lambda inputs, _, needed: (*inputs[:2], list(needed)))


def _int8_matmul(
    left: Tensor, right: Tensor, bias: Tensor | None, dtype: torch.dtype, row_sums: Tensor | None = None
) -> Tensor:
    """``left @ right.T + bias`` in a dtype, from quantized rows; the sums of left's rows go to `row_sums`.

    Always in compiled code: quantizing and scaling one step at a time costs as much as the products of integers gain.
    """
    if not products.supports_int8():
        function = _int8_reference if isinstance(left, FakeTensor) else _compiled_int8_reference()
        return function(left, right, bias, dtype, row_sums)
    out = torch.empty(len(left), len(right), dtype=dtype)
    return products.int8_matmul(left, right, bias, out=out, sums=row_sums)


def _int8_reference(
    left: Tensor, right: Tensor, bias: Tensor | None, dtype: torch.dtype, row_sums: Tensor | None = None
) -> Tensor:
    if row_sums is not None:
        torch.sum(left, dim=1, dtype=row_sums.dtype, out=row_sums)
    rows, row_scales = _quantize(left)
    columns, column_scales = _quantize(right)
    product = torch.ops.aten._int_mm(rows, columns.t()) * row_scales * column_scales.t()
    return (product if bias is None else product + bias).to(dtype)


def _quantize(x: Tensor) -> tuple[Tensor, Tensor]:
    """Integers of 8 bits and their scales, one a row."""
    x = x.float()
    scale = x.abs().amax(dim=1, keepdim=True) / products.LARGEST
    inverse = torch.where(scale >= _SMALLEST, 1 / scale, 0)
    return (x * inverse).round().to(torch.int8), scale


@cache
def _compiled_int8_reference() -> Callable[..., Tensor]:
    return torch.compile(_int8_reference, dynamic=True)


class DtypeCast:
    """Casts tensors to a dtype, the latest one once: queries, keys and values are projections of the same tensor."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self._latest: tuple[Tensor, Tensor] | None = None

    def __call__(self, input: Tensor) -> Tensor:
        """The tensor in the dtype."""
        if self._latest is None or self._latest[0] is not input:
            self._latest = input, input.to(self.dtype)
        return self._latest[1]


class PrepackedWeight(NamedTuple):
    """A weight in another dtype and in oneDNN's order, into which it is reordered for every product otherwise."""

    weight: Tensor
    bias: Tensor | None
    cast: DtypeCast


def supports_prepacking(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether oneDNN computes products of this dtype, and can prepack their weights."""
    return (
        device.type == "cpu"
        and dtype == torch.bfloat16
        and torch.backends.mkldnn.is_available()
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
        and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    )


def prepack(weight: Tensor, bias: Tensor | None, cast: DtypeCast) -> PrepackedWeight:
    """Convert and reorder a weight once for many products, whose inputs `cast` converts."""
    packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach().to(cast.dtype))
    return PrepackedWeight(packed, None if bias is None else bias.detach().to(cast.dtype), cast)


def prepacked_linear(input: Float[Tensor, "*batch inputs"], weight: PrepackedWeight) -> Float[Tensor, "*batch outputs"]:
    """``input @ weight.T + bias`` in the weight's dtype, without gradients."""
    return torch.ops.mkldnn._linear_pointwise(weight.cast(input), weight.weight, weight.bias, "none", [], "")


@operation("fp32_linear")
def fp32_linear(input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``input @ weight.T + bias`` in float32."""
    return products.fp32_matmul(input, weight, bias, out=input.new_empty(len(input), len(weight)))


@operation("fp32_linear_grad")
def fp32_linear_grad(grad: Tensor, input: Tensor, weight: Tensor, needed: list[bool]) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of input, weight and bias; those that aren't needed are empty."""
    grad, product = grad.contiguous(), fp32_linear.function
    grad_input = product(grad, weight.t(), None) if needed[0] else grad.new_empty(0)
    grad_weight = product(grad.t(), input.t(), None) if needed[1] else grad.new_empty(0)
    return grad_input, grad_weight, grad.sum(dim=0) if needed[2] else grad.new_empty(0)


fp32_linear.register_autograd(fp32_linear_grad, saved=lambda inputs, _, needed: (*inputs[:2], list(needed)))


def _is_ours(weight: Tensor) -> bool:
    """Whether our product of bfloat16 with a weight or its transpose is faster than torch's."""
    return min(weight.shape) >= _AMX_SIZE and products.has_amx()


@operation("bf16_linear")
def bf16_linear(input: Tensor, weight: Tensor, bias: Tensor | None, lower: Tensor | None) -> Tensor:
    """The output in bfloat16; `lower` is the weight in bfloat16, for torch's products; None: ours compute all."""
    if lower is not None:
        return F.linear(input, lower, None if bias is None else bias.to(lower.dtype))
    return products.bf16_matmul(input, weight, bias, out=input.new_empty(len(input), len(weight)))


@operation("bf16_linear_grad")
def bf16_linear_grad(
    grad: Tensor, input: Tensor, weight: Tensor, lower: Tensor | None, needed: list[bool]
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of input, weight and bias; those that aren't needed are empty.

    oneDNN would split the sums over tokens by the number of threads, and round them to bfloat16.
    """
    grad = grad.contiguous()
    grad_input, grad_weight, grad_bias = grad.new_empty(0), grad.new_empty(0), grad.new_empty(0)
    if needed[0] and lower is not None:
        grad_input = grad @ lower
    elif needed[0]:
        grad_input = products.bf16_matmul(grad, weight.t(), out=torch.empty_like(input))
    if needed[1] or needed[2]:
        grad_weight, grad_bias = (grad.new_empty(size, dtype=torch.float32) for size in (weight.shape, len(weight)))
        products.bf16_matmul(grad.t(), input.t(), out=grad_weight, sums=grad_bias)
    return grad_input, grad_weight, grad_bias


bf16_linear.register_autograd(
    bf16_linear_grad, saved=lambda inputs, _, needed: (*inputs[:2], inputs[3], list(needed[:3]))
)
