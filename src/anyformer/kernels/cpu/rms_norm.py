"""RMS norms in training (see rms_norm.cpp)."""

from typing import Any

import torch
from torch import Tensor

from anyformer.kernels.cpu import structs
from anyformer.kernels.cpu.library import Kernel, supports_bf16
from anyformer.kernels.operation import operation

KERNEL = Kernel("rms_norm", structs.RmsNormArgs)


def supports(x: Tensor) -> bool:
    """Whether compiled code has the norm of this; it waits for the compiler."""
    return supports_bf16(x) and KERNEL.supported()


@operation("rms_norm")
def forward(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """``x * rstd * weight`` and ``rstd = 1 / sqrt(mean(x^2) + eps)``, [*batch], of a contiguous x in float32."""
    out, rstd = torch.empty_like(x), x.new_empty(x.shape[:-1])
    KERNEL.run(rows=rstd.numel(), width=weight.numel(), eps=eps, x=x, weight=weight, out=out, rstd=rstd)
    return out, rstd


@operation("rms_norm_backward")
def backward(grad: Tensor, x: Tensor, weight: Tensor, rstd: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The gradients of x and of the weight."""
    grad, grad_x = grad.contiguous(), torch.empty_like(x)
    grad_weight = weight.new_zeros(torch.get_num_threads(), *weight.shape)
    grads = {"grad_out": grad, "grad_x": grad_x, "grad_weight": grad_weight}
    KERNEL.run(rows=rstd.numel(), width=weight.numel(), eps=eps, x=x, weight=weight, rstd=rstd, **grads)
    return grad_x, grad_weight.sum(dim=0)


def _setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, float], output: tuple[Tensor, Tensor]) -> None:
    x, weight, ctx.eps = inputs
    ctx.save_for_backward(x, weight, output[1])
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad: Tensor, _: None) -> tuple[Tensor, Tensor, None]:
    x, weight, rstd = ctx.saved_tensors
    return *backward(grad, x, weight, rstd, ctx.eps), None


forward.register_autograd(_backward, setup_context=_setup_context)
