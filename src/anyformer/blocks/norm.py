"""Normalization of one token's vector: a class made from (width, eps), and an entry in `NORMS`, for each kind."""

from collections.abc import Callable
from functools import partial

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, full, nn
from typing_extensions import override

from anyformer import kernels
from anyformer.config import NormConfig
from anyformer.schema import lookup


class LayerNorm(nn.LayerNorm):
    """``(x - mean(x)) / sqrt(var(x) + eps) * weight + bias`` (Ba et al. 2016, equation 4)."""

    @override
    def forward(self, input: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch width"]:
        return kernels.layer_norm(input, self.weight, self.bias, self.eps)


class RMSNorm(nn.Module):
    """``x / sqrt(mean(x^2) + eps) * weight`` (Zhang & Sennrich 2019, equation 4)."""

    offset = 0.0

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(full((width,), 1.0 - self.offset))

    def forward(self, x: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch width"]:
        """Normalize over the last dimension."""
        return kernels.rms_norm(x, self.weight, self.eps, self.offset)


class OffsetRMSNorm(RMSNorm):
    """``x / sqrt(mean(x^2) + eps) * (1 + weight)``: Gemma's, which decays to the identity (its code, RMSNorm)."""

    offset = 1.0


class PlainRMSNorm(nn.Module):
    """``x / sqrt(mean(x^2) + eps)``, with nothing to learn (nanochat)."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.width, self.eps = width, eps

    def forward(self, x: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch width"]:
        """Normalize over the last dimension."""
        return F.rms_norm(x, (self.width,), eps=self.eps)


NORMS: dict[str, Callable[[int, float], nn.Module]] = {
    "layer": LayerNorm,
    "layer_no_bias": partial(LayerNorm, bias=False),
    "rms": RMSNorm,
    "rms_offset": OffsetRMSNorm,
    "rms_plain": PlainRMSNorm,
}


def norm(config: NormConfig, width: int) -> nn.Module:
    """The norm that the config names. Raises ConfigError for an unknown kind."""
    return lookup(NORMS, config.kind, "norm.kind")(width, config.eps)
