"""Normalization of one token's vector.

Each kind is a class made from (width, eps) and an entry in `NORMS`: add one of your own and every config can name it.
"""

from collections.abc import Callable

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn, ones, promote_types, zeros

from anyformer.kernels.cpu.rms_norm import can_normalize, rms_norm


class LayerNorm(nn.Module):
    """``(x - mean(x)) / sqrt(var(x) + eps) * weight + bias`` (Ba et al. 2016, equation 4)."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(ones(width))
        self.bias = nn.Parameter(zeros(width))

    def forward(self, x: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch width"]:
        """Normalize over the last dimension."""
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)


class RMSNorm(nn.Module):
    """``x / sqrt(mean(x^2) + eps) * weight`` (Zhang & Sennrich 2019, equation 4)."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(ones(width))

    def forward(self, x: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch width"]:
        """Normalize over the last dimension."""
        if self.training and x.requires_grad and can_normalize(x):
            return rms_norm(x, self.weight, self.eps)
        # Heads of queries and keys can be narrower than the weight; torch is slow at such a mixture, and warns of it.
        wide = x.to(promote_types(x.dtype, self.weight.dtype))
        return F.rms_norm(wide, self.weight.shape, self.weight.to(wide.dtype), self.eps).to(x.dtype)


NORMS: dict[str, Callable[[int, float], nn.Module]] = {"layer": LayerNorm, "rms": RMSNorm}
