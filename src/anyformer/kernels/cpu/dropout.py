"""Dropout (see dropout.cpp)."""

from typing import Any

import torch
from torch import Tensor

from anyformer.kernels.cpu import structs
from anyformer.kernels.cpu.library import Kernel
from anyformer.kernels.cpu_features import enabled
from anyformer.kernels.operation import operation

KERNEL = Kernel("dropout", structs.DropoutArgs)
_LEVELS = 1 << 32


def supports(x: Tensor) -> bool:
    """Whether compiled code drops numbers of these; it waits for the compiler."""
    return x.device.type == "cpu" and x.dtype in structs.DTYPES and enabled() and KERNEL.supported()


@operation("dropout")
def dropout(x: Tensor, seed: Tensor, p: float) -> Tensor:
    """``x * keep / (1 - p)``, where `keep` is a function of the seed, a number of 64 bits, and the index."""
    x, threshold = x.contiguous(), round(p * _LEVELS)
    out = torch.empty_like(x)
    sizes = {"dtype": structs.DTYPES[x.dtype], "count": x.numel(), "threshold": threshold}
    KERNEL.run(x=x, out=out, seed=seed, scale=_LEVELS / (_LEVELS - threshold), **sizes)
    return out


def _setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, float], output: Tensor) -> None:
    _, seed, ctx.p = inputs
    ctx.save_for_backward(seed)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
    (seed,) = ctx.saved_tensors
    return dropout.function(grad, seed, ctx.p), None, None


dropout.register_autograd(_backward, setup_context=_setup_context)
