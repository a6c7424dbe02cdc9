"""The embedding and the positions of a model, as data."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Literal

from typing_extensions import override

from anyformer.config.types import Count, Factor, Rate, Size, Stretch, Theta
from anyformer.errors import cut
from anyformer.schema import Checked, Rule


@dataclass(frozen=True, kw_only=True)
class EmbeddingConfig(Checked, part="embedding"):
    """From token ids to vectors."""

    tied: bool = True
    """The language-model head uses the token table as its matrix (Press & Wolf 2017)."""
    scaled: bool = False
    """Multiply the token vectors by sqrt(d_model) (the 2017 paper, section 3.4)."""
    scale: Factor = 1.0
    """Factor on the token vectors (Granite's embedding_multiplier)."""
    width: Count | None = None
    """Width of all tables; a linear layer follows the norm, from it to d_model (ALBERT, ELECTRA small). None: d_model,
    and no such layer."""
    segments: Size = 0
    """Number of segment (token type) vectors: BERT's sentence A and B."""
    norm: bool = False
    """Normalize the sum (BERT, BART)."""
    padding: int | None = None
    """Token id whose row learns nothing from being read."""
    ngrams: Count = 1
    """Longest run of tokens that has a vector of its own, added to that of its last token (Pagnoni et al. 2024,
    section 3.2.1; Huang et al. 2025); 1: single tokens only. Small alphabets, such as characters, gain much."""
    ngram_rows: Count = 65536
    """Vectors that all runs share by hash."""
    dropout: Rate = 0.0


@dataclass(frozen=True, kw_only=True)
class RotaryScaling(Checked, part="position.scaling"):
    """Stretching of rotary positions past the length that a model was trained on.

    `linear` divides every frequency by `factor`; `dynamic` raises theta as the sequence outgrows `max_length`
    (NTK); `llama3` divides only the long wavelengths; `yarn` blends both and sharpens the attention
    (Peng et al. 2023); `longrope` divides each frequency by a number of its own, another one in long texts
    (Ding et al. 2024, section 3).
    """

    kind: Literal["linear", "dynamic", "llama3", "yarn", "longrope"]
    factor: Stretch
    original_length: Count | None = None
    """The length of the first training (llama3, yarn, longrope)."""
    low_frequency: Stretch = 1.0
    high_frequency: Stretch = 4.0
    """llama3: wavelengths beyond original_length / low_frequency are divided, those within / high_frequency kept."""
    beta_fast: Stretch = 32.0
    beta_slow: Stretch = 1.0
    """yarn: rotations over the original length between which the two are blended."""
    attention_factor: Stretch | None = None
    """yarn, longrope: factor on cosines and sines; None: 0.1 ln(factor) + 1, or of longrope
    sqrt(1 + ln(factor) / ln(original_length))."""
    truncate: bool = True
    """yarn: round the blending range outwards to whole dimensions."""
    short_factor: tuple[Stretch, ...] = ()
    long_factor: tuple[Stretch, ...] = ()
    """longrope: the divisor of each pair's frequency in texts of up to original_length tokens, and in longer ones."""

    @override
    def _faults(self) -> Iterator[str]:
        if self.kind in ("llama3", "yarn", "longrope") and self.original_length is None:
            yield f"original_length: {self.kind} scaling needs it"
        if self.kind == "longrope" and self.original_length == 1:
            yield "original_length: longrope scaling needs at least 2"
        if len(self.short_factor) != len(self.long_factor):
            numbers = f"{len(self.short_factor)} numbers, and {len(self.long_factor)} in long_factor"
            yield f"short_factor: {numbers}: each rotated pair has one of each"
        if self.kind == "llama3" and self.low_frequency >= self.high_frequency:
            yield f"low_frequency: {self.low_frequency} must be below high_frequency, {self.high_frequency}"


@dataclass(frozen=True, kw_only=True)
class PositionConfig(Checked, part="position"):
    """Positions: the order of the tokens.

    ============ =================================================== ==========================================
    kind         what it does                                        source
    ============ =================================================== ==========================================
    none         nothing (a causal decoder can still learn order)    Haviv et al. 2022
    sinusoidal   adds fixed sines and cosines to the embeddings      Vaswani et al. 2017, section 3.5
    learned      adds a learned vector for each position             GPT-2, BERT
    rotary       rotates queries and keys by their position          Su et al. 2021
    relative     adds a learned bias for each distance to the scores T5: Raffel et al. 2020, section 2.1
    disentangled compares queries and keys with a learned vector for DeBERTa: He et al. 2021, section 3.1
                 each distance as well
    ============ =================================================== ==========================================
    """

    kind: str = "learned"
    """A name in `anyformer.blocks.position.POSITIONS`."""
    layout: Literal["interleaved", "halves", "fairseq"] = "halves"
    """sinusoidal: sine and cosine alternate (the paper's text), or all sines come first (its code, Marian); fairseq:
    they do, and the last wavelength is the 10,000th multiple of the first, not the one before it (M2M-100)."""
    offset: Size = 0
    """learned: rows of the table before position 0 (2 in RoBERTa and BART); fairseq: the number of position 0."""
    skip_padding: bool = False
    """learned, fairseq: tokens equal to `embedding.padding` do not count as positions (RoBERTa, M2M-100)."""
    relative_bias: bool = False
    """learned: add the bias of relative positions to the scores as well (MPNet)."""
    theta: Theta = 10_000.0
    """rotary: the base of the wavelengths."""
    scaling: RotaryScaling | None = None
    rotary_fraction: Annotated[float, Rule(lambda part: 0 < part <= 1, "lies above 0, up to 1")] = 1.0
    """rotary: the part of each head that is rotated: of the pairs (i, i + head_dim / 2) the first (GPT-NeoX, Phi)."""
    buckets: Annotated[int, Rule(lambda n: n >= 4 and n % 2 == 0, "is an even number of at least 4")] = 32
    """relative, relative_bias, disentangled: number of distances told apart."""
    max_distance: int = 128
    """relative, relative_bias, disentangled: distances from here on share one bucket."""

    @property
    def has_bias(self) -> bool:
        """Whether a bias for each distance is added to the scores."""
        return self.kind == "relative" or self.relative_bias

    @property
    def has_buckets(self) -> bool:
        """Whether positions are distances, which far apart share a bucket."""
        return self.has_bias or self.kind == "disentangled"

    @override
    def _faults(self) -> Iterator[str]:
        if self.max_distance <= self.buckets // 2:
            yield f"max_distance: must exceed half of the {self.buckets} buckets"
        if self.scaling is not None and self.kind != "rotary":
            yield f"scaling: only rotary positions are scaled, not {cut(self.kind)}"
        if self.rotary_fraction != 1.0 and self.kind != "rotary":
            yield f"rotary_fraction: only rotary positions have it, not {cut(self.kind)}"
        is_fairseq = (self.kind, self.layout) == ("sinusoidal", "fairseq")
        if self.skip_padding and self.kind != "learned" and not is_fairseq:
            yield "skip_padding: only learned positions and fairseq's sinusoids know it"
        if self.relative_bias and self.kind != "learned":
            yield "relative_bias: only learned positions have it beside their vectors"
