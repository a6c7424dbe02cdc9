"""Positional encodings: how the order of the tokens enters a transformer.

A positional encoding acts in one of four ways::

    embed             a vector added to the token's embedding      sinusoidal, learned
    rotation          a rotation of every query and key            rotary
    bias              a number added to every attention score      relative, and learned where it is asked for
    relative_vectors  vectors compared with queries and keys       disentangled

A kind of one's own is a subclass of `PositionalEncoding` and an entry in `POSITIONS`.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from anyformer import kernels
from anyformer.blocks.linear import Dropout, Embedding
from anyformer.blocks.norm import norm
from anyformer.blocks.pooling import select
from anyformer.config import NormConfig, PositionConfig, RotaryScaling
from anyformer.kernels import RelativeVectors
from anyformer.schema import lookup


class Angles(NamedTuple):
    """Cosines and sines of the angles by which vectors rotate."""

    cos: Float[Tensor, "#batch 1 time head_dim"]
    sin: Float[Tensor, "#batch 1 time head_dim"]

    def map(self, function: Callable[[Tensor], Tensor]) -> "Angles":
        """The angles with a function applied to both tables."""
        return Angles(function(self.cos), function(self.sin))

    def rotate(self, x: Float[Tensor, "batch heads time head_dim"]) -> Float[Tensor, "batch heads time head_dim"]:
        """Rotate pair (i, i + head_dim / 2) of each vector by its angle (RoFormer, equation 34, in halves)."""
        return kernels.rotate(x, self.cos, self.sin)


class Rotation(NamedTuple):
    """The rotation of queries and keys by their positions; ``Rotation()`` leaves them as they are."""

    queries: Angles | None = None
    keys: Angles | None = None

    def to(self, dtype: torch.dtype) -> "Rotation":
        """The rotation in a dtype."""
        if self.keys is None or self.keys.cos.dtype == dtype:
            return self
        return Rotation(*(angles and angles.map(lambda table: table.to(dtype)) for angles in self))

    def select(self, index: Int[Tensor, " batch"]) -> "Rotation":
        """The rotation of one query of each sequence, and of all keys."""
        if self.queries is None:
            return self
        return self._replace(queries=self.queries.map(lambda table: select(table.squeeze(1), index)[:, None]))

    def rotate(
        self, query: Float[Tensor, "#batch heads queries head_dim"], key: Float[Tensor, "#batch kv_heads keys head_dim"]
    ) -> tuple[Float[Tensor, "#batch heads queries head_dim"], Float[Tensor, "#batch kv_heads keys head_dim"]]:
        """Rotate queries and keys."""
        if self.queries is None or self.keys is None:
            return query, key
        return self.queries.rotate(query), self.keys.rotate(key)


class PositionSize(NamedTuple):
    """The sizes that positions depend on."""

    width: int
    """Width of the vectors that positions are added to."""
    heads: int
    """Query heads."""
    head_dim: int
    max_length: int
    """Longest sequence, in tokens."""
    causal: bool
    """Whether tokens see only what came before."""
    norm: NormConfig = NormConfig()
    """The norms of the model."""
    dropout: float = 0.0
    """Dropout on vectors of positions that are compared."""


class PositionalEncoding(nn.Module):
    """No position at all; subclasses override the methods by which they act."""

    def __init__(self, config: PositionConfig, size: PositionSize) -> None:
        super().__init__()
        self.config = config
        self.size = size

    def embed(self, positions: Int[Tensor, "batch time"]) -> Float[Tensor, "batch time width"] | None:
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

    def relative_vectors(
        self, queries: Int[Tensor, "#batch queries"], keys: Int[Tensor, "#batch keys"]
    ) -> RelativeVectors | None:
        """Vectors between tokens at these positions, which queries and keys are compared with."""
        return None


class SinusoidalPosition(PositionalEncoding):
    """``PE(pos, 2i) = sin(pos / 10000^(2i/d))``, ``PE(pos, 2i+1) = cos(same)`` (Vaswani et al. 2017, section 3.5).

    The paper's text interleaves sines and cosines; its code (tensor2tensor) and Marian put all sines first. So does
    fairseq, with ``10000^(i/(d/2 - 1))``, positions from `offset` on, and zeros for tokens that do not count.
    """

    _table: Float[Tensor, "max_length width"] | None = None

    def embed(self, positions: Int[Tensor, "batch time"]) -> Float[Tensor, "batch time width"]:
        """Look the positions up in a table, which is computed by the host: not every device has float64."""
        if self._table is None or self._table.device != positions.device:
            self._table = self.vectors().to(positions.device)
        vectors = F.embedding(positions.clamp(min=0), self._table)
        return vectors * (positions >= 0)[..., None] if self.config.skip_padding else vectors

    def vectors(self) -> Float[Tensor, "max_length width"]:
        """Sines and cosines, computed in float64 since an angle can be thousands of radians.

        fairseq's are computed in float32, in the order of its operations: its models have learned them as they are.
        """
        width, layout = self.size.width, self.config.layout
        positions = torch.arange(self.size.max_length, device="cpu")[:, None]
        if layout == "fairseq":
            pairs = torch.arange(width // 2, device="cpu").float()
            frequencies = torch.exp(pairs * -(math.log(10_000.0) / (width // 2 - 1)))
            angles = (positions + self.config.offset).float() * frequencies
        else:
            evens = torch.arange(0, width, 2, device="cpu", dtype=torch.float64)
            angles = positions / 10_000.0 ** (evens / width)
        sines, cosines = angles.sin(), angles.cos()[..., : width // 2]
        if layout == "interleaved":
            return torch.stack((sines, cosines), dim=-1).flatten(-2).float()
        return torch.cat((sines, cosines), dim=-1).float()


class RotaryPosition(PositionalEncoding):
    """Queries and keys are rotated by their position: a score depends on their distance (RoFormer, Su et al. 2021)."""

    def rotation(self, positions: Int[Tensor, "batch time"], length: Int[Tensor, "batch #time"]) -> Rotation:
        """Angles ``position * frequency``, once for each half of a head, and 0 for pairs that are not rotated."""
        rotated = int(self.size.head_dim * self.config.rotary_fraction)
        radians, sharpness = frequencies(self.config, rotated, self.size.max_length, length)
        angles = (positions.float()[..., None] * radians)[:, None]
        cos, sin = angles.cos() * sharpness, angles.sin() * sharpness
        if rotated < self.size.head_dim:
            rest = (0, (self.size.head_dim - rotated) // 2)
            cos, sin = F.pad(cos, rest, value=1.0), F.pad(sin, rest)
        tables = Angles(torch.cat((cos, cos), dim=-1), torch.cat((sin, sin), dim=-1))
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
        buckets = self.config.buckets if self.size.causal else self.config.buckets // 2
        side = 0 if self.size.causal else (distance > 0) * buckets
        distance = (-distance).clamp(min=0) if self.size.causal else distance.abs()
        exact = buckets // 2
        scale = torch.log(distance.float() / exact) / math.log(self.config.max_distance / exact)
        far = (exact + (scale * (buckets - exact)).long()).clamp(max=buckets - 1)
        return side + torch.where(distance < exact, distance, far)

    def bias(
        self, queries: Int[Tensor, "#batch queries"], keys: Int[Tensor, "#batch keys"]
    ) -> Float[Tensor, "batch heads queries keys"]:
        """The bias between every query and key."""
        return self.table(self.bucket(keys[:, None, :] - queries[:, :, None])).permute(0, 3, 1, 2)


class DisentangledPosition(PositionalEncoding):
    """A learned vector for each (bucketed) distance, the same in all layers, which the projections of every layer turn
    into a query and a key (He et al. 2021, section 3.1; `DisentangledAttention`).

    Near distances have a bucket each, farther ones share logarithmically wider buckets (its code, LogBucket).
    """

    def __init__(self, config: PositionConfig, size: PositionSize) -> None:
        super().__init__(config, size)
        self.table = Embedding(config.buckets, size.width)
        self.norm = norm(size.norm, size.width)
        self.dropout = Dropout(size.dropout)

    def bucket(self, distance: Int[Tensor, "*batch queries keys"]) -> Int[Tensor, "*batch queries keys"]:
        """The bucket of ``query - key``: the lower half of them for keys that follow."""
        half = self.config.buckets // 2
        near = half // 2
        # In float32 and in this order, as the reference: where it is a whole number, rounding decides the bucket.
        stretch = torch.log(torch.tensor((self.config.max_distance - 1) / near))
        far = torch.ceil(torch.log(distance.abs().clamp(min=near) / near) / stretch * (near - 1)) + near
        signed = torch.where(distance.abs() <= near, distance, (far * distance.sign()).long())
        return half + signed.clamp(-half, half - 1)

    def relative_vectors(
        self, queries: Int[Tensor, "#batch queries"], keys: Int[Tensor, "#batch keys"]
    ) -> RelativeVectors:
        """The vectors of all distances that a text of so many keys may have."""
        half, farthest = self.config.buckets // 2, keys.shape[1] - 1
        reach = farthest if farthest <= half // 2 else half
        rows = torch.arange(half - reach, min(half + reach + 1, 2 * half), device=keys.device)
        index = self.bucket(queries[:, :, None] - keys[:, None, :]) - (half - reach)
        return RelativeVectors(self.norm(self.table(rows))[None], index, self.dropout.rate)


class LearnedPosition(PositionalEncoding):
    """One learned vector for each position (GPT-2, BERT); `offset` rows of the table come before position 0.

    MPNet adds the bias of relative positions to the scores as well (its code, MPNetEncoder).
    """

    def __init__(self, config: PositionConfig, size: PositionSize) -> None:
        super().__init__(config, size)
        padding = config.offset - 1 if config.skip_padding else None
        self.table = Embedding(size.max_length + config.offset, size.width, padding_idx=padding)
        self.relative = RelativePosition(config, size) if config.relative_bias else None

    def embed(self, positions: Int[Tensor, "batch time"]) -> Float[Tensor, "batch time width"]:
        """Look the positions up."""
        return self.table((positions + self.config.offset).clamp(min=0))

    def bias(
        self, queries: Int[Tensor, "#batch queries"], keys: Int[Tensor, "#batch keys"]
    ) -> Float[Tensor, "batch heads queries keys"] | None:
        """The bias of the distance, where there is one."""
        return None if self.relative is None else self.relative.bias(queries, keys)


POSITIONS: dict[str, type[PositionalEncoding]] = {
    "none": PositionalEncoding,
    "sinusoidal": SinusoidalPosition,
    "learned": LearnedPosition,
    "rotary": RotaryPosition,
    "relative": RelativePosition,
    "disentangled": DisentangledPosition,
}


def positional_encoding(config: PositionConfig, size: PositionSize) -> PositionalEncoding:
    """The positional encoding that the config names. Raises ConfigError for an unknown kind."""
    return lookup(POSITIONS, config.kind, "position.kind")(config, size)


def frequencies(
    config: PositionConfig, head_dim: int, max_length: int, length: Int[Tensor, "batch #time"]
) -> tuple[Float[Tensor, "*batch half"], float]:
    """Radians per position for each pair of a head: ``theta^(-2i / head_dim)``, scaled.

    Args:
        max_length: Tokens that the model was trained on.
        length: Tokens in each text, or in the document around each token, which dynamic scaling and LongRoPE look at.

    Returns:
        The frequencies, of shape [head_dim / 2] or, when they depend on the text, [batch, 1 or time, head_dim / 2];
        and the factor on cosines and sines that goes with them.
    """
    pairs = torch.arange(0, head_dim, 2, device=length.device, dtype=torch.float32) / head_dim
    scaling, plain = config.scaling, 1.0 / config.theta**pairs
    if scaling is None:
        return plain, 1.0
    if scaling.kind == "dynamic":  # NTK-aware: theta rises where the text outgrows max_length
        overshoot = scaling.factor * length.clamp(min=max_length) / max_length - (scaling.factor - 1)
        base = config.theta * overshoot ** (head_dim / (head_dim - 2))
        return 1.0 / base[..., None] ** pairs, 1.0
    if scaling.kind == "longrope":
        return _longrope(config.theta**pairs, scaling, length)
    if scaling.kind == "linear":
        return plain / scaling.factor, 1.0
    assert scaling.original_length is not None  # RotaryScaling sees to it
    if scaling.kind == "llama3":
        return _llama3(plain, scaling, scaling.original_length), 1.0
    sharpness = 0.1 * math.log(scaling.factor) + 1.0 if scaling.factor > 1 else 1.0
    sharpness = sharpness if scaling.attention_factor is None else scaling.attention_factor
    return _yarn(plain, scaling, scaling.original_length, config.theta, head_dim), sharpness


def _llama3(plain: Float[Tensor, " half"], scaling: RotaryScaling, original_length: int) -> Float[Tensor, " half"]:
    """Long wavelengths are divided by the factor, short ones kept, those between blended (LLaMA 3.1's code)."""
    low, high = scaling.low_frequency, scaling.high_frequency
    rotations = original_length / (2 * math.pi / plain)
    keep = ((rotations - low) / (high - low)).clamp(0, 1)
    return (1 - keep) * plain / scaling.factor + keep * plain


def _longrope(
    wavelengths: Float[Tensor, " half"], scaling: RotaryScaling, length: Int[Tensor, "batch #time"]
) -> tuple[Float[Tensor, "batch #time half"], float]:
    """Every frequency is divided by a number of its own, another one in long texts (Ding et al. 2024, section 3.3)."""
    assert scaling.original_length is not None
    divisors = (scaling.short_factor, scaling.long_factor)
    short, long = (1.0 / (wavelengths.new_tensor(each) * wavelengths) for each in divisors)
    stretched = math.log(max(scaling.factor, 1.0)) / math.log(scaling.original_length)
    sharpness = math.sqrt(1 + stretched) if scaling.attention_factor is None else scaling.attention_factor
    return torch.where((length > scaling.original_length)[..., None], long, short), sharpness


def _yarn(
    plain: Float[Tensor, " half"], scaling: RotaryScaling, original_length: int, theta: float, head_dim: int
) -> Float[Tensor, " half"]:
    """NTK-by-parts: pairs that rotate often are kept, the others divided (Peng et al. 2023, section 3.2)."""
    low, high = yarn_range(scaling, original_length, theta, head_dim)
    index = torch.arange(len(plain), device=plain.device, dtype=torch.float32)
    keep = 1 - ((index - low) / (high - low)).clamp(0, 1)
    return plain / scaling.factor * (1 - keep) + plain * keep


def yarn_range(scaling: RotaryScaling, original_length: int, theta: float, head_dim: int) -> tuple[float, float]:
    """The pairs between which YaRN blends those that are kept with those that are divided."""

    def pair_with(rotations: float) -> float:
        return head_dim * math.log(original_length / (rotations * 2 * math.pi)) / (2 * math.log(theta))

    low, high = pair_with(scaling.beta_fast), pair_with(scaling.beta_slow)
    if scaling.truncate:
        low, high = float(math.floor(low)), float(math.ceil(high))
    low, high = max(low, 0.0), min(high, head_dim - 1.0)
    return low, high + 0.001 if low == high else high


def positions_in_documents(
    documents: Int[Tensor, "batch time"], counts: Bool[Tensor, "batch time"] | None = None
) -> Int[Tensor, "batch time"]:
    """The position of each token in its document, a number for each stretch of tokens; -1 for those not counted."""
    ones = torch.ones_like(documents) if counts is None else counts.long()
    total = ones.cumsum(dim=1)
    before = ((total - ones) * _first(documents)).cummax(dim=1).values
    return (total - before) * ones - 1


def lengths_of_documents(
    documents: Int[Tensor, "batch time"], positions: Int[Tensor, "batch time"]
) -> Int[Tensor, "batch time"]:
    """For every token the number of positions in its document."""
    number = _first(documents).cumsum(dim=1, dtype=torch.long) - 1
    lengths = torch.zeros_like(number).scatter_reduce(1, number, positions + 1, "amax")
    return lengths.gather(1, number)


def _first(documents: Tensor) -> Tensor:
    """Marks the tokens with which a document begins."""
    first = torch.ones_like(documents, dtype=torch.bool)
    first[:, 1:] = documents[:, 1:] != documents[:, :-1]
    return first
