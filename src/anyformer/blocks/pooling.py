"""From the hidden states of a text to one vector."""

from collections.abc import Callable, Iterable
from itertools import pairwise
from typing import cast

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor, nn

from anyformer.blocks.feed_forward import ACTIVATIONS
from anyformer.config import PoolingConfig
from anyformer.schema import lookup


def pool_mean(
    hidden: Float[Tensor, "batch time d_model"], mask: Bool[Tensor, "batch time"] | None = None
) -> Float[Tensor, "batch d_model"]:
    """The mean of the hidden states (Reimers & Gurevych 2019, section 3); the mask is False for padding."""
    if mask is None:
        return hidden.mean(dim=1)
    return (hidden * mask[..., None]).sum(dim=1) / mask.sum(dim=1, keepdim=True)


def pool_max(
    hidden: Float[Tensor, "batch time d_model"], mask: Bool[Tensor, "batch time"] | None = None
) -> Float[Tensor, "batch d_model"]:
    """The largest number of each dimension."""
    if mask is not None:
        hidden = hidden.masked_fill(~mask[..., None], -torch.inf)
    return hidden.amax(dim=1)


def first_token(
    tokens: Shaped[Tensor, "batch time *_"], mask: Bool[Tensor, "batch time"] | None = None
) -> Int[Tensor, " batch"]:
    """The index of each sequence's first token."""
    if mask is None:
        return torch.zeros(len(tokens), dtype=torch.long, device=tokens.device)
    return mask.int().argmax(dim=1)


def last_token(
    tokens: Shaped[Tensor, "batch time *_"], mask: Bool[Tensor, "batch time"] | None = None
) -> Int[Tensor, " batch"]:
    """The index of each sequence's last token."""
    end = tokens.shape[1] - 1
    if mask is None:
        return torch.full((len(tokens),), end, device=tokens.device)
    return end - mask.flip(1).int().argmax(dim=1)


def select(
    x: Shaped[Tensor, "#batch time *features"], index: Int[Tensor, " batch"] | None
) -> Shaped[Tensor, "batch positions *features"]:
    """One position of each sequence, [batch, 1, ...]; all of them if the index is None."""
    return x if index is None else _vectors(x, index)[:, None]


def _vectors(hidden: Tensor, index: Tensor) -> Tensor:
    return hidden[torch.arange(len(hidden), device=hidden.device), index]


TOKENS: dict[str, Callable[[Tensor, Tensor | None], Tensor]] = {"first": first_token, "last": last_token}
"""Index of the token, for poolings that take one: from tokens [batch, time, ...] and mask [batch, time] to [batch].

Wherever the padding is. BERT takes the first, its [CLS] (Devlin et al. 2019, section 3), a decoder the last, the only
one that sees the whole text (Radford et al. 2018, section 3.2).
"""

POOLINGS: dict[str, Callable[[Tensor, Tensor | None], Tensor]] = {
    "mean": pool_mean,
    "max": pool_max,
    "first": lambda hidden, mask: _vectors(hidden, first_token(hidden, mask)),
    "last": lambda hidden, mask: _vectors(hidden, last_token(hidden, mask)),
}
"""From hidden states [batch, time, d_model] and mask [batch, time] to [batch, d_model]."""


class TextPooling(nn.Module):
    """The vector of a text: pooled hidden states, linear layers on them where there are any, length 1 if asked for.

    Reimers & Gurevych 2019, section 3, and sentence-transformers' modules Pooling, Dense and Normalize.
    """

    def __init__(self, config: PoolingConfig, d_model: int) -> None:
        super().__init__()
        self.normalize, activation = config.normalize, config.dense_activation
        self.pool = POOLINGS[config.kind]
        widths = (d_model, *config.dense)
        # Of torch's own class: too few weights to be quantized or adapted.
        self.dense = nn.ModuleList(nn.Linear(*sizes, bias=config.dense_bias) for sizes in pairwise(widths))
        self.activation = lookup(ACTIVATIONS, activation, "pooling.dense_activation") if activation else None

    def forward(
        self, hidden: Float[Tensor, "batch time d_model"], mask: Bool[Tensor, "batch time"] | None = None
    ) -> Float[Tensor, "batch width"]:
        """Vectors in float32; the mask is False for padding."""
        vectors = self.pool(hidden.float(), mask)
        for layer in cast("Iterable[nn.Linear]", self.dense):
            vectors = layer(vectors.to(layer.weight.dtype))
            vectors = (vectors if self.activation is None else self.activation(vectors)).float()
        return F.normalize(vectors, dim=-1) if self.normalize else vectors
