"""Root mean square layer normalization; compiled code in training and beside autocast (see cpu/rms_norm.cpp)."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from anyformer.kernels.autocast import autocasts
from anyformer.kernels.cpu import structs
from anyformer.kernels.cpu.library import Kernel
from anyformer.kernels.operation import operation

KERNEL = Kernel("rms_norm", structs.RmsNormArgs, "rms_norm in bfloat16", "avx512bf16")


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


@operation("rms_norm")
def forward(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """``x * rstd * weight`` and ``rstd = 1 / sqrt(mean(x^2) + eps)``, [*batch], of a contiguous x."""
    out, rstd = torch.empty_like(x), x.new_empty(x.shape[:-1], dtype=torch.float32)
    _run(x, weight, rstd, eps, out=out)
    return out, rstd


@operation("rms_norm_backward")
def backward(grad: Tensor, x: Tensor, weight: Tensor, rstd: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The gradients of x and of the weight."""
    grad, grad_x = grad.contiguous(), torch.empty_like(x)
    grad_weight = weight.new_zeros(torch.get_num_threads(), *weight.shape)
    _run(x, weight, rstd, eps, grad_out=grad, grad_x=grad_x, grad_weight=grad_weight)
    return grad_x, grad_weight.sum(dim=0)


def _run(x: Tensor, weight: Tensor, rstd: Tensor, eps: float, **others: Tensor) -> None:
    sizes = {"rows": rstd.numel(), "width": weight.numel(), "dtype": structs.DTYPES[x.dtype]}
    KERNEL.run(x=x, weight=weight, rstd=rstd, eps=eps, **sizes, **others)


forward.register_autograd(backward, saved=lambda inputs, outputs, _: (*inputs[:2], outputs[1], inputs[2]))
