"""How the order of the tokens enters a transformer.

A positional encoding acts in one of three ways::

    embed      a vector added to the token's embedding      sinusoidal, learned
    rotation   a rotation of every query and key            rotary
    bias       a number added to every attention score      relative

A kind of one's own is a subclass of `PositionalEncoding` and an entry in `POSITIONS`.
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from anyformer.blocks import rope
from anyformer.blocks.linear import Embedding
from anyformer.blocks.rope import Angles, Rotation
from anyformer.config import PositionConfig
from anyformer.schema import lookup


class PositionSize(NamedTuple):
    """The sizes that positions depend on."""

    d_model: int
    heads: int
    """Query heads."""
    head_dim: int
    max_length: int
    """Longest sequence, in tokens."""
    causal: bool
    """Whether tokens see only what came before."""


class PositionalEncoding(nn.Module):
    """No position at all; subclasses override one of the three methods.

    Args:
        config: The kind and its parameters.
        size: What the stack around it looks like.
    """

    def __init__(self, config: PositionConfig, size: PositionSize) -> None:
        super().__init__()
        self.config = config
        self.size = size

    def embed(self, positions: Int[Tensor, "batch time"]) -> Float[Tensor, "batch time d_model"] | None:
        """Vectors added to the embeddings; position -1 marks a token that does not count."""
        return None

    def rotation(self, positions: Int[Tensor, "batch time"], length: Int[Tensor, "batch #time"]) -> Rotation:
        """The rotation of queries and keys at these positions, in texts (or documents) of these lengths in tokens."""
        return Rotation()

    def bias(
        self, queries: Int[Tensor, "#batch queries"], keys: Int[Tensor, "#batch keys"]
    ) -> Float[Tensor, "batch heads queries keys"] | None:
        """Bias added to the scores between tokens at these positions."""
        return None


class SinusoidalPosition(PositionalEncoding):
    """``PE(pos, 2i) = sin(pos / 10000^(2i/d))``, ``PE(pos, 2i+1) = cos(same)`` (Vaswani et al. 2017, section 3.5).

    The paper's text interleaves sines and cosines; its code (tensor2tensor) and Marian put all sines first.
    """

    def embed(self, positions: Int[Tensor, "batch time"]) -> Float[Tensor, "batch time d_model"]:
        """Sines and cosines, computed in float64 since an angle can be thousands of radians."""
        d_model = self.size.d_model
        evens = torch.arange(0, d_model, 2, device=positions.device, dtype=torch.float64)
        angles = positions.clamp(min=0)[..., None] / 10_000.0 ** (evens / d_model)
        sines, cosines = angles.sin(), angles.cos()[..., : d_model // 2]
        if self.config.layout == "interleaved":
            return torch.stack((sines, cosines), dim=-1).flatten(-2).float()
        return torch.cat((sines, cosines), dim=-1).float()


class LearnedPosition(PositionalEncoding):
    """One learned vector for each position (GPT-2, BERT); `offset` rows of the table come before position 0."""

    def __init__(self, config: PositionConfig, size: PositionSize) -> None:
        super().__init__(config, size)
        self.table = Embedding(
            size.max_length + config.offset,
            size.d_model,
            padding_idx=config.offset - 1 if config.skip_padding else None,
        )

    def embed(self, positions: Int[Tensor, "batch time"]) -> Float[Tensor, "batch time d_model"]:
        """Look the positions up."""
        return self.table((positions + self.config.offset).clamp(min=0))


class RotaryPosition(PositionalEncoding):
    """Queries and keys are rotated by their position: a score depends on their distance (RoFormer, Su et al. 2021)."""

    def rotation(self, positions: Int[Tensor, "batch time"], length: Int[Tensor, "batch #time"]) -> Rotation:
        """Angles ``position * frequency``, once for each half of a head."""
        frequencies, sharpness = rope.frequencies(self.config, self.size.head_dim, self.size.max_length, length)
        angles = (positions.float()[..., None] * frequencies)[:, None]
        angles = torch.cat((angles, angles), dim=-1)
        tables = Angles(angles.cos() * sharpness, angles.sin() * sharpness)
        return Rotation(tables, tables)


class RelativePosition(PositionalEncoding):
    """A learned bias for each (bucketed) distance and head, shared by all layers (Raffel et al. 2020, section 2.1).

    Near distances have a bucket each, farther ones share logarithmically wider buckets.
    """

    def __init__(self, config: PositionConfig, size: PositionSize) -> None:
        super().__init__(config, size)
        self.table = Embedding(config.buckets, size.heads)

    def bucket(self, distance: Int[Tensor, "*batch queries keys"]) -> Int[Tensor, "*batch queries keys"]:
        """The bucket of ``key - query``. Where both directions are seen, half of the buckets are for each."""
        buckets = self.config.buckets
        if self.size.causal:
            side, distance = 0, (-distance).clamp(min=0)
        else:
            buckets //= 2
            side, distance = (distance > 0) * buckets, distance.abs()
        exact = buckets // 2
        scale = torch.log(distance.float() / exact) / math.log(self.config.max_distance / exact)
        far = (exact + (scale * (buckets - exact)).long()).clamp(max=buckets - 1)
        return side + torch.where(distance < exact, distance, far)

    def bias(
        self, queries: Int[Tensor, "#batch queries"], keys: Int[Tensor, "#batch keys"]
    ) -> Float[Tensor, "batch heads queries keys"]:
        """The bias between every query and key."""
        return self.table(self.bucket(keys[:, None, :] - queries[:, :, None])).permute(0, 3, 1, 2)


POSITIONS: dict[str, type[PositionalEncoding]] = {
    "none": PositionalEncoding,
    "sinusoidal": SinusoidalPosition,
    "learned": LearnedPosition,
    "rotary": RotaryPosition,
    "relative": RelativePosition,
}


def positional_encoding(config: PositionConfig, size: PositionSize) -> PositionalEncoding:
    """The positional encoding that the config names. Raises ConfigError for an unknown kind."""
    return lookup(POSITIONS, config.kind, "position.kind")(config, size)


def positions_in_documents(
    documents: Int[Tensor, "batch time"], counts: Bool[Tensor, "batch time"] | None = None
) -> Int[Tensor, "batch time"]:
    """The position of each token in its document; -1 for those that do not count.

    Args:
        documents: The document of each token, a number for each stretch of them.
        counts: False for a token that takes up no position; None: all do.
    """
    ones = torch.ones_like(documents) if counts is None else counts.long()
    total = ones.cumsum(dim=1)
    before = ((total - ones) * _first(documents)).cummax(dim=1).values
    return (total - before) * ones - 1


def lengths_of_documents(
    documents: Int[Tensor, "batch time"], positions: Int[Tensor, "batch time"]
) -> Int[Tensor, "batch time"]:
    """For every token the number of positions in its document."""
    number = _first(documents).cumsum(dim=1) - 1
    lengths = torch.zeros_like(number).scatter_reduce(1, number, positions + 1, "amax")
    return lengths.gather(1, number)


def _first(documents: Tensor) -> Tensor:
    """Marks the tokens with which a document begins."""
    first = torch.ones_like(documents, dtype=torch.bool)
    first[:, 1:] = documents[:, 1:] != documents[:, :-1]
    return first
