"""Dropout (Srivastava et al. 2014)."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from anyformer.kernels.cpu import dropout as cpu


def dropout(input: Float[Tensor, "*shape"], p: float, training: bool = True) -> Float[Tensor, "*shape"]:
    """``input * keep / (1 - p)``, where `keep` is 0 with probability p for each number, and 1 otherwise.

    On a CPU torch draws each decision by itself, which takes longer than some of the products around it. Compiled code
    computes them from one number that torch's generator draws, and computes them again in the backward pass.
    """
    if not training or p == 0.0:
        return input
    if torch.compiler.is_compiling() or not cpu.supports(input, p):
        return F.dropout(input, p)
    return cpu.dropout(input, torch.empty(1, dtype=torch.int64).random_(-(1 << 63), None), p)
