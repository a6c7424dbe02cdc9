"""Dropout (Srivastava et al. 2014)."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from anyformer.kernels.cpu import dropout as cpu

_LEVELS = 1 << 16
"""Steps of a probability on a CPU without compiled code: the rate is exact to 1 / 131,072."""


def dropout(input: Float[Tensor, "*shape"], p: float, training: bool = True) -> Float[Tensor, "*shape"]:
    """``input * keep / (1 - p)``, where `keep` is 0 with probability p for each number, and 1 otherwise.

    On a CPU torch draws each decision by itself, which takes longer than some of the products around it. Compiled code
    computes them from one number that torch's generator draws, and computes them again in the backward pass. Without
    it one draw of 64 bits serves four numbers.
    """
    if not training or p == 0.0:
        return input
    threshold = round(p * _LEVELS)
    if input.device.type != "cpu" or not 0 < threshold < _LEVELS or torch.compiler.is_compiling():
        return F.dropout(input, p)
    if cpu.supports(input):
        return cpu.dropout(input, draw(1), p)
    bits = draw(-(-input.numel() // 4)).view(torch.int16)[: input.numel()].view(input.shape)
    keep = (bits >= threshold - _LEVELS // 2).to(input.dtype)
    return input * keep.mul_(_LEVELS / (_LEVELS - threshold))


def draw(count: int) -> Tensor:
    """Numbers of 64 random bits."""
    return torch.empty(count, dtype=torch.int64).random_(-(1 << 63), None)
