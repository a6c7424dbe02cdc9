"""RMS norms in training (see rms_norm.cpp)."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from anyformer.kernels.cpu import structs
from anyformer.kernels.cpu.library import Kernel, supports_bf16

KERNEL = Kernel("rms_norm")


@torch.compiler.assume_constant_result
def _supported() -> bool:
    return KERNEL.supported()


def supports(x: Tensor) -> bool:
    """Whether compiled code has the norm of this; it waits for the compiler."""
    return supports_bf16(x) and _supported()


def forward(
    x: Float[Tensor, "*batch width"], weight: Float[Tensor, " width"], eps: float
) -> tuple[Float[Tensor, "*batch width"], Float[Tensor, "*batch"]]:
    """``x * rstd * weight`` and ``rstd = 1 / sqrt(mean(x^2) + eps)`` of a contiguous x, in float32."""
    out, rstd = torch.empty(x.shape), torch.empty(x.shape[:-1])
    _run(eps, x=x, weight=weight, out=out, rstd=rstd)
    return out, rstd


def backward(grad: Tensor, x: Tensor, weight: Tensor, rstd: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The gradients of x and of the weight."""
    grad_x, grad_weight = torch.empty_like(x), torch.zeros(torch.get_num_threads(), *weight.shape)
    _run(eps, x=x, weight=weight, rstd=rstd, grad_out=grad, grad_x=grad_x, grad_weight=grad_weight)
    return grad_x, grad_weight.sum(dim=0)


def _run(eps: float, *, weight: Tensor, rstd: Tensor, **parts: Tensor) -> None:
    pointers = {name: part.data_ptr() for name, part in {"weight": weight, "rstd": rstd, **parts}.items()}
    KERNEL.run(
        structs.RmsNormArgs(
            rows=rstd.numel(), width=weight.numel(), eps=eps, num_threads=torch.get_num_threads(), **pointers
        )
    )
