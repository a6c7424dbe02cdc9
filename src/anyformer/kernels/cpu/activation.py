"""Activations of bfloat16 numbers in training (see activation.cpp)."""

from __future__ import annotations

import torch
from jaxtyping import BFloat16
from torch import Tensor

from anyformer.kernels.cpu import structs
from anyformer.kernels.cpu.library import Kernel, supports_bf16

KERNEL = Kernel("activation")


@torch.compiler.assume_constant_result
def _supported() -> bool:
    return KERNEL.supported()


def supports(x: Tensor, multiplier: Tensor | None) -> bool:
    """Whether compiled code has activations of these; it waits for the compiler."""
    return (
        all(part is None or part.dtype == torch.bfloat16 for part in (x, multiplier))
        and supports_bf16(x)
        and _supported()
    )


def forward(
    x: BFloat16[Tensor, "*shape"], multiplier: BFloat16[Tensor, "*shape"] | None, kind: int
) -> BFloat16[Tensor, "*shape"]:
    """``act(x)``, or ``act(x) * multiplier``, of contiguous tensors."""
    out = torch.empty_like(x)
    _run(kind, x=x, multiplier=multiplier, out=out)
    return out


def backward(grad: Tensor, x: Tensor, multiplier: Tensor | None, kind: int) -> tuple[Tensor, Tensor]:
    """The gradients of x and of the multiplier, which is empty where there is none."""
    grad_x = torch.empty_like(x)
    grad_multiplier = None if multiplier is None else torch.empty_like(multiplier)
    _run(kind, x=x, multiplier=multiplier, grad_out=grad, grad_x=grad_x, grad_multiplier=grad_multiplier)
    return grad_x, x.new_empty(0) if grad_multiplier is None else grad_multiplier


def _run(kind: int, *, x: Tensor, **parts: Tensor | None) -> None:
    pointers = {name: None if part is None else part.data_ptr() for name, part in parts.items()}
    KERNEL.run(
        structs.ActivationArgs(
            x=x.data_ptr(), kind=kind, count=x.numel(), num_threads=torch.get_num_threads(), **pointers
        )
    )
