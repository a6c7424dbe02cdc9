"""RMS norms for training in compiled code (see rms_norm.cpp)."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from anyformer.kernels.cpu import structs
from anyformer.kernels.cpu.library import Kernel, supports_bf16

KERNEL = Kernel("rms_norm")


def can_normalize(x: Tensor) -> bool:
    """Whether `rms_norm` is there for this; it waits for the compiler."""
    return supports_bf16(x) and KERNEL.supported()


def rms_norm(
    x: Float[Tensor, "*batch width"], weight: Float[Tensor, " width"], eps: float
) -> Float[Tensor, "*batch width"]:
    """``x / sqrt(mean(x^2) + eps) * weight``, computed in float32. It is differentiable once."""
    made: Tensor = _RmsNorm.apply(x.float(), weight.float(), eps)  # pyright: ignore[reportAssignmentType]
    return made.to(x.dtype)


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        x, out = x.contiguous(), torch.empty(x.shape)
        factors = torch.empty(x.shape[:-1])
        _run(eps, x=x, weight=weight, out=out, rstd=factors)
        ctx.save_for_backward(x, weight, factors)
        ctx.eps = eps  # pyright: ignore[reportAttributeAccessIssue]
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, weight, factors = ctx.saved_tensors
        grad_x, grad_weight = torch.empty_like(x), torch.zeros(torch.get_num_threads(), *weight.shape)
        parts = {"x": x, "weight": weight, "rstd": factors, "grad_out": grad_outputs[0].contiguous()}
        _run(ctx.eps, **parts, grad_x=grad_x, grad_weight=grad_weight)
        return grad_x, grad_weight.sum(dim=0), None


def _run(eps: float, **parts: Tensor) -> None:
    places = {name: part.data_ptr() for name, part in parts.items()}
    rows, width = parts["rstd"].numel(), parts["weight"].numel()
    described = structs.RmsNormArgs(**places, rows=rows, width=width, eps=eps, num_threads=torch.get_num_threads())
    KERNEL.run(described)
