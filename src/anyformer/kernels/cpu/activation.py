"""Activations of bfloat16 numbers in training (see activation.cpp)."""

from typing import Any

import torch
from torch import Tensor

from anyformer.kernels.cpu import structs
from anyformer.kernels.cpu.library import Kernel, supports_bf16
from anyformer.kernels.operation import operation

KERNEL = Kernel("activation", structs.ActivationArgs)


def supports(x: Tensor, multiplier: Tensor | None) -> bool:
    """Whether compiled code has activations of these; it waits for the compiler."""
    agree = multiplier is None or (multiplier.shape == x.shape and multiplier.dtype == x.dtype)
    return agree and x.dtype == torch.bfloat16 and supports_bf16(x) and KERNEL.supported()


@operation("activation")
def forward(x: Tensor, multiplier: Tensor | None, kind: int) -> Tensor:
    """``act(x)``, or ``act(x) * multiplier``, of contiguous tensors."""
    out = torch.empty_like(x)
    KERNEL.run(kind=kind, count=x.numel(), x=x, multiplier=multiplier, out=out)
    return out


@operation("activation_backward")
def backward(grad: Tensor, x: Tensor, multiplier: Tensor | None, kind: int) -> tuple[Tensor, Tensor]:
    """The gradients of x and of the multiplier, which is empty where there is none."""
    grad, grad_x = grad.contiguous(), torch.empty_like(x)
    grad_multiplier = x.new_empty(0) if multiplier is None else torch.empty_like(multiplier)
    grads = {"grad_out": grad, "grad_x": grad_x, "grad_multiplier": None if multiplier is None else grad_multiplier}
    KERNEL.run(kind=kind, count=x.numel(), x=x, multiplier=multiplier, **grads)
    return grad_x, grad_multiplier


def _setup_context(ctx: Any, inputs: tuple[Tensor, Tensor | None, int], output: Tensor) -> None:
    x, multiplier, ctx.kind = inputs
    ctx.save_for_backward(x, multiplier)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None, None]:
    x, multiplier = ctx.saved_tensors
    grad_x, grad_multiplier = backward(grad, x, multiplier, ctx.kind)
    return grad_x, None if multiplier is None else grad_multiplier, None


forward.register_autograd(_backward, setup_context=_setup_context)
