"""``x @ weight.T + bias``: in floating point, trained in 8-bit integers, or of a quantized weight."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from anyformer.kernels.activation import recomputed_in_backward
from anyformer.kernels.autocast import as_rows, autocast_disabled
from anyformer.kernels.cpu import bf16_matmul, quantized_matmul
from anyformer.kernels.int8_linear import int8_linear, supports_int8
from anyformer.kernels.operation import operation
from anyformer.kernels.packed_weight import BLOCK_ROWS, PackedWeight, unpack
from anyformer.kernels.quantization import GROUP, dequantize

Matmul = Literal["float", "int8"]
"""How a linear layer multiplies while it is trained."""

_AMX_SIZE = 512
"""Inputs and outputs from which our product in bfloat16 is faster than torch's; the weight's gradient always is."""

_CHUNK = 1 << 18
"""Weights that are dequantized at a time: they stay in the cache of a core until they are used."""


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
    with recomputed_in_backward(input):
        if matmul == "int8" and supports_int8(input, weight, bias):
            return int8_linear(input, weight, bias)
        if torch.is_grad_enabled() and weight.requires_grad and bf16_matmul.supports(input):
            with autocast_disabled(input):
                out = amx_linear(as_rows(input, torch.bfloat16), weight, bias)
            return out.view(*input.shape[:-1], len(weight))
        return F.linear(input, weight, bias)


def quantized_linear(
    input: Float[Tensor, "*batch inputs"],
    weight: PackedWeight,
    outputs: int,
    bias: Float[Tensor, " outputs"] | None = None,
    *,
    transposed: Callable[[], PackedWeight | None] = lambda: None,
) -> Float[Tensor, "*batch outputs"]:
    """``input @ weight.T + bias`` of the first `outputs` rows of a quantized weight, in the dtype of the input.

    Compiled code quantizes the input to 8 bits as well; torch dequantizes some rows of the weight at a time. The input
    gets a gradient, the weight none.

    Args:
        transposed: The transpose of the weight, quantized along its own rows, for compiled code to multiply the
            gradient with (see `packed_weight.transpose`); None: the weight is dequantized instead.
    """
    if torch.is_grad_enabled() and (input.requires_grad or (bias is not None and bias.requires_grad)):
        return _QuantizedLinear.apply(input, *weight, outputs, bias, transposed)  # pyright: ignore[reportReturnType]
    return quantized_product(input, weight, outputs, bias)


def quantized_product(
    input: Float[Tensor, "*batch inputs"], weight: PackedWeight, outputs: int, bias: Float[Tensor, " outputs"] | None
) -> Float[Tensor, "*batch outputs"]:
    """`quantized_linear` of tensors that record no gradients."""
    agree = input.shape[-1] == weight.columns and (bias is None or bias.shape == (outputs,))
    if agree and quantized_matmul.supports(input):
        return quantized_matmul.quantized_matmul(input, weight, outputs, bias)
    blocks = blocks_at_a_time(weight)
    if torch.compiler.is_compiling() or outputs <= blocks * BLOCK_ROWS:
        return F.linear(input, dequantize(unpack(weight, outputs), input.dtype), bias)
    out = torch.empty(*input.shape[:-1], outputs, dtype=input.dtype, device=input.device)
    for block in range(0, len(weight.integers), blocks):
        rows = slice(block * BLOCK_ROWS, (block + blocks) * BLOCK_ROWS)
        part = unpack(weight.blocks(block, block + blocks), outputs - rows.start)
        out[..., rows] = F.linear(input, dequantize(part, input.dtype), None if bias is None else bias[rows])
    return out


def blocks_at_a_time(weight: PackedWeight) -> int:
    """Blocks of rows of a quantized weight that torch dequantizes at a time."""
    return max(1, _CHUNK // (weight.columns * BLOCK_ROWS))


def quantized_input_grad(
    grad: Float[Tensor, "*batch outputs"],
    weight: PackedWeight,
    outputs: int,
    transposed: Callable[[], PackedWeight | None],
) -> Float[Tensor, "*batch inputs"]:
    """The gradient of the input of a `quantized_linear`, from that of its output."""
    matrix = transposed() if quantized_matmul.supports(grad) else None
    if matrix is None:
        return grad @ dequantize(unpack(weight, outputs), grad.dtype)
    if outputs % GROUP:
        grad = torch.cat([grad, grad.new_zeros(*grad.shape[:-1], -outputs % GROUP)], dim=-1)  # as the matrix is padded
    return quantized_matmul.quantized_matmul(grad, matrix, weight.columns, None)


class _QuantizedLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,
        integers: Tensor,
        scales: Tensor,
        minima: Tensor | None,
        outputs: int,
        bias: Tensor | None,
        transposed: Callable[[], PackedWeight | None],
    ) -> Tensor:
        ctx.weight, ctx.outputs, ctx.transposed = PackedWeight(integers, scales, minima), outputs, transposed
        return quantized_product(input, ctx.weight, outputs, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        grad = grad_outputs[0]
        grad_input = None
        if ctx.needs_input_grad[0]:
            grad_input = quantized_input_grad(grad, ctx.weight, ctx.outputs, ctx.transposed)
        grad_bias = grad.flatten(0, -2).sum(0) if ctx.needs_input_grad[5] else None
        return grad_input, None, None, None, None, grad_bias, None


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


@operation("amx_linear")
def amx_linear(input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The output in bfloat16."""
    return _amx_product(input, weight, bias)


@operation("amx_linear_grad")
def amx_linear_grad(grad: Tensor, input: Tensor, weight: Tensor, needed: list[bool]) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of input, weight and bias; those that aren't needed are empty."""
    grad_input, grad_weight, grad_bias = grad.new_empty(0), grad.new_empty(0), grad.new_empty(0)
    if needed[0]:
        grad_input = _amx_product(grad, weight.t(), None)
    if needed[1] or needed[2]:
        grad_weight, grad_bias = (grad.new_empty(size, dtype=torch.float32) for size in (weight.shape, len(weight)))
        bf16_matmul.bf16_matmul(grad.t(), input.t(), out=grad_weight, sums=grad_bias)
    return grad_input, grad_weight, grad_bias


def _amx_product(left: Tensor, right: Tensor, bias: Tensor | None) -> Tensor:
    """``left @ right.T + bias`` in bfloat16."""
    if min(right.shape) >= _AMX_SIZE:
        return bf16_matmul.bf16_matmul(left, right, bias, out=left.new_empty(len(left), len(right)))
    return F.linear(left, right.to(left.dtype), None if bias is None else bias.to(left.dtype))


def _setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor | None], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:2])


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    (input, weight), needed = ctx.saved_tensors, list(ctx.needs_input_grad)
    grads = amx_linear_grad(grad.contiguous(), input, weight, needed)
    return tuple(part if wanted else None for part, wanted in zip(grads, needed, strict=True))


amx_linear.register_autograd(_backward, setup_context=_setup_context)
