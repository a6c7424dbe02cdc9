"""Normalization over the last dimension, and the norm of many tensors, whose sums depend on no number of threads."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from anyformer.kernels.autocast import autocasts
from anyformer.kernels.cpu import structs
from anyformer.kernels.cpu.library import Kernel
from anyformer.kernels.operation import operation

KERNEL = Kernel("norm", structs.NormArgs, "gradients of norms; rms_norm in bfloat16")
SQUARE_SUM = Kernel("square_sum", structs.SquareSumArgs, "norm of all gradients")
_PARTS, _PART_ROWS = 64, 64
"""Parts of the rows of a gradient of weights, at most, and rows of a part, at least."""


def rms_norm(
    input: Float[Tensor, "*batch width"], weight: Float[Tensor, " width"], eps: float, offset: float = 0.0
) -> Float[Tensor, "*batch width"]:
    """``input / sqrt(mean(input^2) + eps) * (offset + weight)`` over the last dimension, in the dtype of the input."""
    if offset:
        weight = offset + weight.to(torch.promote_types(weight.dtype, torch.float32))  # 16 bits would round the sum
    compiled = input.requires_grad or autocasts(input)
    if compiled and weight.shape == input.shape[-1:] and KERNEL.supports_bf16(input):
        x = input if input.dtype in structs.DTYPES else input.float()
        out, _ = forward(x.contiguous(), weight.float(), eps)
        return out.to(input.dtype)
    x = input
    if x.dtype != weight.dtype:
        # Heads of queries and keys can have a lower precision than the weight; torch is slow at a mixture, and warns.
        dtype = torch.promote_types(x.dtype, weight.dtype)
        x, weight = x.to(dtype), weight.to(dtype)
    return F.rms_norm(x, weight.shape, weight, eps).to(input.dtype)


def layer_norm(
    input: Float[Tensor, "*batch width"],
    weight: Float[Tensor, " width"] | None,
    bias: Float[Tensor, " width"] | None,
    eps: float,
) -> Float[Tensor, "*batch width"]:
    """`torch.nn.functional.layer_norm` over the last dimension, whose gradients compiled code sums."""
    supported = torch.is_grad_enabled() and input.is_cpu and input.dtype in structs.DTYPES and KERNEL.supported()
    if weight is not None and weight.requires_grad and supported:
        return layer_forward(input.contiguous(), weight, bias, eps)[0]
    return F.layer_norm(input, input.shape[-1:], weight, bias, eps)


def square_sum(tensors: Sequence[Tensor]) -> Float[Tensor, ""]:
    """The sum of the squares of all numbers of contiguous tensors, on a CPU."""
    if any(tensor.dtype != torch.float32 for tensor in tensors) or not SQUARE_SUM.supported():
        flat = [tensor.view(-1) for tensor in tensors]
        return torch.stack([torch.dot(part, part) for part in flat]).sum()
    addresses = torch.tensor([structs.address(tensor) for tensor in tensors])
    counts, total = torch.tensor([tensor.numel() for tensor in tensors]), torch.zeros((), dtype=torch.float64)
    SQUARE_SUM.run(addresses=addresses, counts=counts, tensors=len(tensors), total=total)
    return total.float()


@operation("layer_norm")
def layer_forward(x: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """The result, and the mean and ``1 / sqrt(var(x) + eps)`` of each vector, [*batch, 1], of a contiguous x."""
    return torch.native_layer_norm(x, x.shape[-1:], weight, bias, eps)


@operation("layer_norm_backward")
def layer_backward(
    grad: Tensor, x: Tensor, weight: Tensor, mean: Tensor, rstd: Tensor, has_bias: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of x, of the weight and of the bias, which is empty where there is none."""
    grads = _gradients(grad.to(x.dtype), x, weight.float(), rstd.float(), 0.0, mean.float(), has_bias)
    return grads[0], grads[1].to(weight.dtype), grads[2].to(weight.dtype)


layer_forward.register_autograd(
    layer_backward, saved=lambda inputs, outputs, _: (*inputs[:2], *outputs[1:], inputs[2] is not None)
)


@operation("rms_norm")
def forward(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """``x * rstd * weight`` and ``rstd = 1 / sqrt(mean(x^2) + eps)``, [*batch], of a contiguous x."""
    out, rstd = torch.empty_like(x), x.new_empty(x.shape[:-1], dtype=torch.float32)
    _run(x, weight, rstd, eps, max(1, rstd.numel() // _PART_ROWS), out=out)
    return out, rstd


@operation("rms_norm_backward")
def backward(grad: Tensor, x: Tensor, weight: Tensor, rstd: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The gradients of x and of the weight."""
    return _gradients(grad, x, weight, rstd, eps)[:2]


def _gradients(
    grad: Tensor, x: Tensor, weight: Tensor, rstd: Tensor, eps: float, mean: Tensor | None = None, bias: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    grad, grad_x = grad.contiguous(), torch.empty_like(x)
    parts = max(1, min(_PARTS, rstd.numel() // _PART_ROWS))
    grad_weight = weight.new_zeros(parts, *weight.shape)
    grad_bias = weight.new_zeros(parts, *weight.shape) if bias else None
    grads = {"grad_out": grad, "grad_x": grad_x, "grad_weight": grad_weight, "grad_bias": grad_bias}
    _run(x, weight, rstd, eps, parts, mean=mean, **grads)
    return grad_x, grad_weight.sum(dim=0), weight.new_empty(0) if grad_bias is None else grad_bias.sum(dim=0)


def _run(x: Tensor, weight: Tensor, rstd: Tensor, eps: float, parts: int, **others: Tensor | None) -> None:
    sizes = {"rows": rstd.numel(), "width": weight.numel(), "parts": parts, "dtype": structs.DTYPES[x.dtype]}
    KERNEL.run(x=x, weight=weight, rstd=rstd, eps=eps, **sizes, **others)


forward.register_autograd(backward, saved=lambda inputs, outputs, _: (*inputs[:2], outputs[1], inputs[2]))
