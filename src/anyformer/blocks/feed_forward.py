"""The feed-forward block: the same small network for every token."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from anyformer.blocks.dropout import Dropout
from anyformer.config import ConfigError, FeedForwardConfig
from anyformer.errors import nearest
from anyformer.kernels.cpu import structs
from anyformer.kernels.cpu.activation import activated, can_activate


# By name, for a copy of a model, or one that was sent to another process, has the same ones.
def _relu_squared(x: Tensor) -> Tensor:
    return F.relu(x).square()


def _gelu_tanh(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "relu_squared": _relu_squared,  # So et al. 2021 (Primer)
    "gelu": F.gelu,  # Hendrycks & Gimpel 2016, with the exact error function
    "gelu_tanh": _gelu_tanh,  # and its approximation, which GPT-2 and T5 v1.1 trained with
    "silu": F.silu,
    "tanh": torch.tanh,
}

COMPILED = {ACTIVATIONS[name]: kind for kind, name in enumerate(structs.ACTIVATIONS)}
"""Those that compiled code knows, by its numbers for them."""


def activation(name: str, field: str) -> Callable[[Tensor], Tensor]:
    """The activation of this name. Raises ConfigError for an unknown one, naming the field that asks for it."""
    if name not in ACTIVATIONS:
        raise ConfigError(f"{field}: {name!r} is unknown ({nearest(name, ACTIVATIONS)}).")
    return ACTIVATIONS[name]


class FeedForward(nn.Module):
    """``down(act(up(x)))`` (Vaswani et al. 2017, equation 2), or gated: ``down(act(gate(x)) * up(x))``.

    The gated form with SiLU is LLaMA's SwiGLU, with GELU it is T5 v1.1's GEGLU (Shazeer 2020, equation 6).
    """

    def __init__(self, config: FeedForwardConfig, d_model: int) -> None:
        super().__init__()
        self.activation = activation(config.activation, "feed_forward.activation")
        self.up = nn.Linear(d_model, config.width, bias=config.bias)
        self.gate = nn.Linear(d_model, config.width, bias=config.bias) if config.gated else None
        self.down = nn.Linear(config.width, d_model, bias=config.bias)
        self.dropout = Dropout(config.dropout)

    def forward(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        """Transform each vector by itself."""
        up, gate = self.up(x), None if self.gate is None else self.gate(x)
        inner, factor = (up, None) if gate is None else (gate, up)
        if self.training and up.requires_grad and self.activation in COMPILED and can_activate(inner, factor):
            return activated(COMPILED[self.activation], inner, factor, self._outwards)
        return self._outwards(self.activation(up) if gate is None else self.activation(gate) * up)

    def _outwards(self, inner: Tensor) -> Tensor:
        return self.down(self.dropout(inner))
