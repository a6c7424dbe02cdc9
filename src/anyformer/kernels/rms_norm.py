"""Root mean square layer normalization."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from anyformer.kernels.cpu import rms_norm as cpu
from anyformer.kernels.operation import Operation, opaque


def rms_norm(
    input: Float[Tensor, "*batch width"], weight: Float[Tensor, " width"], eps: float
) -> Float[Tensor, "*batch width"]:
    """``input / sqrt(mean(input^2) + eps) * weight`` over the last dimension, in the dtype of the input."""
    if input.requires_grad and cpu.supports(input):
        out, _ = _RMS_NORM(input.float().contiguous(), weight.float(), eps)
        return out.to(input.dtype)
    # Heads of queries and keys can have a lower precision than the weight; torch is slow at such a mixture, and warns.
    dtype = torch.promote_types(input.dtype, weight.dtype)
    return F.rms_norm(input.to(dtype), weight.shape, weight.to(dtype), eps).to(input.dtype)


def compiled_rms_norm(input: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The norm in compiled code, and the reciprocal of each row's root mean square."""
    return cpu.forward(input, weight, eps)


def _fake(input: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    return torch.empty_like(input), input.new_empty(input.shape[:-1])


def _backward_fake(grad: Tensor, input: Tensor, weight: Tensor, rstd: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    return torch.empty_like(input), torch.empty_like(weight)


@opaque(_backward_fake)
def rms_norm_backward(grad: Tensor, input: Tensor, weight: Tensor, rstd: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The gradients of the input and of the weight."""
    return cpu.backward(grad.contiguous(), input, weight, rstd, eps)


def _save(ctx: Any, inputs: tuple[Tensor, Tensor, float], output: tuple[Tensor, Tensor]) -> None:
    input, weight, ctx.eps = inputs
    ctx.save_for_backward(input, weight, output[1])
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad: Tensor, _: None) -> tuple[Tensor, Tensor, None]:
    input, weight, rstd = ctx.saved_tensors
    return *rms_norm_backward(grad, input, weight, rstd, ctx.eps), None


_RMS_NORM = Operation(compiled_rms_norm, _fake, _save, _backward)
