"""Rotary positions: the rotation, its frequencies, and the ways to scale them to longer sequences."""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from anyformer.blocks.pooling import select
from anyformer.config import PositionConfig, RotaryScaling


class Angles(NamedTuple):
    """Cosines and sines of the angles by which vectors rotate."""

    cos: Float[Tensor, "#batch 1 time head_dim"]
    sin: Float[Tensor, "#batch 1 time head_dim"]

    def rotate(self, x: Float[Tensor, "batch heads time head_dim"]) -> Float[Tensor, "batch heads time head_dim"]:
        """Rotate pair (i, i + head_dim / 2) of each vector by its angle (RoFormer, equation 34, in halves)."""
        first, second = x.chunk(2, dim=-1)
        return x * self.cos + torch.cat((-second, first), dim=-1) * self.sin


class Rotation(NamedTuple):
    """The rotation of queries and keys by their positions; ``Rotation()`` leaves them as they are."""

    queries: Angles | None = None
    keys: Angles | None = None

    def to(self, dtype: torch.dtype) -> "Rotation":
        """The rotation in a dtype."""
        if self.queries is None or self.keys is None:
            return self
        keys = Angles(*(table.to(dtype) for table in self.keys))
        return Rotation(
            keys if self.queries is self.keys else Angles(*(table.to(dtype) for table in self.queries)), keys
        )

    def select(self, index: Int[Tensor, " batch"]) -> "Rotation":
        """The rotation of one query of each sequence, and of all keys."""
        if self.queries is None:
            return self
        return self._replace(queries=Angles(*(select(table.squeeze(1), index)[:, None] for table in self.queries)))

    def __call__(
        self, query: Float[Tensor, "#batch heads queries head_dim"], key: Float[Tensor, "#batch kv_heads keys head_dim"]
    ) -> tuple[Float[Tensor, "#batch heads queries head_dim"], Float[Tensor, "#batch kv_heads keys head_dim"]]:
        """Rotate queries and keys."""
        if self.queries is None or self.keys is None:
            return query, key
        return self.queries.rotate(query), self.keys.rotate(key)


def frequencies(
    config: PositionConfig, head_dim: int, max_length: int, length: Int[Tensor, "batch #time"]
) -> tuple[Float[Tensor, "*batch half"], float]:
    """Radians per position for each pair of a head: ``theta^(-2i / head_dim)``, scaled.

    Args:
        config: theta and the scaling.
        head_dim: Width of one head.
        max_length: Tokens that the model was trained on.
        length: Tokens in each text, or in the document around each token, which only dynamic scaling looks at.

    Returns:
        The frequencies, of shape [head_dim / 2] or, when they depend on the text, [batch, 1 or time, head_dim / 2];
        and the factor on cosines and sines that goes with them.
    """
    pairs = torch.arange(0, head_dim, 2, device=length.device, dtype=torch.float32) / head_dim
    scaling = config.scaling
    if scaling is None:
        return 1.0 / config.theta**pairs, 1.0
    if scaling.kind == "dynamic":  # NTK-aware: theta rises where the text outgrows max_length
        overshoot = scaling.factor * length.clamp(min=max_length) / max_length - (scaling.factor - 1)
        base = config.theta * overshoot ** (head_dim / (head_dim - 2))
        return 1.0 / base[..., None] ** pairs, 1.0
    plain = 1.0 / config.theta**pairs
    if scaling.kind == "linear":
        return plain / scaling.factor, 1.0
    assert scaling.original_length is not None  # RotaryScaling sees to it
    if scaling.kind == "llama3":
        return _llama3(plain, scaling, scaling.original_length), 1.0
    sharpness = scaling.attention_factor
    if sharpness is None:
        sharpness = 0.1 * math.log(scaling.factor) + 1.0 if scaling.factor > 1 else 1.0
    return _yarn(plain, scaling, scaling.original_length, config.theta, head_dim), sharpness


def _llama3(plain: Float[Tensor, " half"], scaling: RotaryScaling, original_length: int) -> Float[Tensor, " half"]:
    """Long wavelengths are divided by the factor, short ones kept, those between blended (LLaMA 3.1's code)."""
    low, high = scaling.low_frequency, scaling.high_frequency
    rotations = original_length / (2 * math.pi / plain)
    keep = ((rotations - low) / (high - low)).clamp(0, 1)
    return (1 - keep) * plain / scaling.factor + keep * plain


def _yarn(
    plain: Float[Tensor, " half"], scaling: RotaryScaling, original_length: int, theta: float, head_dim: int
) -> Float[Tensor, " half"]:
    """NTK-by-parts: pairs that rotate often are kept, the others divided (Peng et al. 2023, section 3.2)."""

    def pair_with(rotations: float) -> float:
        return head_dim * math.log(original_length / (rotations * 2 * math.pi)) / (2 * math.log(theta))

    low, high = pair_with(scaling.beta_fast), pair_with(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    if low == high:
        high += 0.001
    index = torch.arange(len(plain), device=plain.device, dtype=torch.float32)
    keep = 1 - ((index - low) / (high - low)).clamp(0, 1)
    return plain / scaling.factor * (1 - keep) + plain * keep
