"""Dropout (Srivastava et al. 2014); compiled code on a CPU (see cpu/dropout.cpp)."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from anyformer.kernels.cpu import structs
from anyformer.kernels.cpu.library import Kernel
from anyformer.kernels.operation import operation

KERNEL = Kernel("dropout", structs.DropoutArgs, "dropout")
_LEVELS = 1 << 32
"""Steps of a probability in compiled code."""
_FEW_LEVELS = 1 << 16
"""Steps of a probability on a CPU without compiled code: the rate is exact to 1 / 131,072."""


def dropout(input: Float[Tensor, "*shape"], p: float, training: bool = True) -> Float[Tensor, "*shape"]:
    """``input * keep / (1 - p)``, where `keep` is 0 with probability p for each number, and 1 otherwise.

    On a CPU torch draws each decision by itself, which takes longer than some of the products around it. Compiled code
    computes them from one number that torch's generator draws, and computes them again in the backward pass. Without
    it one draw of 64 bits serves four numbers.
    """
    if not training or p == 0.0:
        return input
    threshold = round(p * _FEW_LEVELS)
    if input.device.type != "cpu" or not 0 < threshold < _FEW_LEVELS or torch.compiler.is_compiling():
        return F.dropout(input, p)
    if input.dtype in structs.DTYPES and KERNEL.supported():
        return compiled_dropout(input, draw(1), p)
    bits = draw(-(-input.numel() // 4)).view(torch.int16)[: input.numel()].view(input.shape)
    keep = (bits >= threshold - _FEW_LEVELS // 2).to(input.dtype)
    return input * keep.mul_(_FEW_LEVELS / (_FEW_LEVELS - threshold))


def draw(count: int) -> Tensor:
    """Numbers of 64 random bits."""
    return torch.empty(count, dtype=torch.int64).random_(-(1 << 63), None)


@operation("dropout")
def compiled_dropout(x: Tensor, seed: Tensor, p: float) -> Tensor:
    """``x * keep / (1 - p)``, where `keep` is a function of the seed, a number of 64 bits, and the index."""
    x, threshold = x.contiguous(), round(p * _LEVELS)
    out = torch.empty_like(x)
    sizes = {"dtype": structs.DTYPES[x.dtype], "count": x.numel(), "threshold": threshold}
    KERNEL.run(x=x, out=out, seed=seed, scale=_LEVELS / (_LEVELS - threshold), **sizes)
    return out


compiled_dropout.register_autograd(compiled_dropout.function, saved=lambda inputs, _, __: inputs[1:])
