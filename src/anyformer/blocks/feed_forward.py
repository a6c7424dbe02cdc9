"""The feed-forward block: the same small network for every token."""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from anyformer import kernels
from anyformer.blocks.linear import Dropout, GroupedLinear, Linear
from anyformer.config import FeedForwardConfig
from anyformer.schema import lookup

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "relu_squared": kernels.relu_squared,  # So et al. 2021 (Primer)
    "gelu": F.gelu,  # Hendrycks & Gimpel 2016, with the exact error function
    "gelu_tanh": kernels.gelu_tanh,  # and its approximation, which GPT-2 and T5 v1.1 trained with
    "silu": F.silu,
    "quick_gelu": kernels.quick_gelu,  # Hendrycks & Gimpel 2016, with a sigmoid: gpt-oss
    "tanh": torch.tanh,
}


class FeedForward(nn.Module):
    """``down(act(up(x)))`` (Vaswani et al. 2017, equation 2), or gated: ``down(act(gate(x)) * up(x))``.

    The gated form with SiLU is LLaMA's SwiGLU, with GELU it is T5 v1.1's GEGLU (Shazeer 2020, equation 6). gpt-oss
    bounds both factors and adds 1 to the second: ``act(min(gate(x), limit)) * (clamp(up(x), -limit, limit) + 1)``.
    """

    def __init__(self, config: FeedForwardConfig, d_model: int) -> None:
        super().__init__()
        self.activation = lookup(ACTIVATIONS, config.activation, "feed_forward.activation")
        linear = Linear if config.experts is None else partial(GroupedLinear, config.experts.count)
        self.up = linear(d_model, config.width, bias=config.bias)
        self.gate = linear(d_model, config.width, bias=config.bias) if config.gated else None
        self.limit, self.up_offset = config.limit, config.up_offset
        self.down = linear(config.width, d_model, bias=config.bias)
        self.dropout = Dropout(config.dropout)

    def forward(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        """Transform each vector by itself."""
        return self.network(x)

    def network(self, x: Float[Tensor, "*batch d_model"], *ends: Tensor) -> Float[Tensor, "*batch d_model"]:
        """The network itself; `ends` tells where the rows of each expert end (see `kernels.grouped_linear`)."""
        if self.gate is None:
            inner = kernels.activation(self.up(x, *ends), self.activation)
        else:
            gate, up = self.gate(x, *ends), self.up(x, *ends)
            if self.limit is not None:
                gate, up = gate.clamp(max=self.limit), up.clamp(-self.limit, self.limit)
            up = up + self.up_offset if self.up_offset else up
            inner = kernels.activation(gate, self.activation, multiplier=up)
        return self.down(self.dropout(inner), *ends)
