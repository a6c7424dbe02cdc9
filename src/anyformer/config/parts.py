"""The parts of a model around its blocks, as data: embedding, positions, head, pooling, initialization, special tokens.

Their types say which values fields take.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import mode
from typing import Annotated, Literal

from typing_extensions import override

from anyformer.errors import UserError, cut, nearest, quote
from anyformer.schema import Checked, Rule

Count = Annotated[int, Rule(lambda number: number >= 1, "must be positive")]
Size = Annotated[int, Rule(lambda number: number >= 0, "can't be negative")]
Rate = Annotated[float, Rule(lambda rate: 0 <= rate < 1, "is a dropout rate, in [0, 1)")]
Stretch = Annotated[float, Rule(lambda number: 1e-6 <= number <= 1e6, "is a positive number, from 1e-6 to 1e6")]
"""Numbers by which positions are scaled: ten thousand times those of published models, and no overflow."""
Theta = Annotated[float, Rule(lambda theta: 1 < theta <= 1e12, "lies above 1, up to 1e12")]
Factor = Annotated[float, Rule(lambda number: 0 < abs(number) <= 1e6, "is a number other than 0, up to 1e6")]
"""Factors on activations: ten thousand times those of published models, and no overflow."""
Softcap = Annotated[float, Rule(lambda number: 1e-3 <= number <= 1e6, "is a positive number, from 1e-3 to 1e6")]


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


HeadKind = Literal["none", "language_model", "classification", "token_classification"]
"""Kinds of heads, see `HeadConfig`."""
ProblemType = Literal["single_label_classification", "multi_label_classification", "regression"]
"""Losses of a classifier, see `HeadConfig`."""


@dataclass(frozen=True, kw_only=True)
class HeadConfig(Checked, part="head"):
    """From hidden states to logits."""

    kind: HeadKind = "language_model"
    """none: hidden states only; language_model: logits over the vocabulary (next token, or the masked one);
    classification: one answer a sequence; token_classification: one a token."""
    transform: str | None = None
    """An activation name; a dense layer, it and a norm come before the logits over the vocabulary (BERT), or before
    those over labels, after pooling (ModernBERT)."""
    transform_norm: bool = True
    """token_classification: the transform ends with the norm (it does not in ELECTRA's discriminator)."""
    transform_bias: bool = True
    """A bias of its dense layer."""
    bias: Literal["none", "learned", "fixed"] = "none"
    """language_model: a bias over the vocabulary; fixed: stored and added but not trained (Marian, BART)."""
    scaled: bool = False
    """language_model: divide the hidden states by sqrt(d_model) (T5 v1.0)."""
    scale: Factor = 1.0
    """language_model: factor on the hidden states (Cohere's logit_scale, the inverse of Granite's logits_scaling)."""
    softcap: Softcap | None = None
    """language_model: bound on the logits, ``softcap * tanh(logits / softcap)`` (Gemma 2, section 2)."""
    pooling: Literal["first", "last", "mean"] = "first"
    """classification: the vector of the text, that of its first token (BERT) or its last (decoders, BART), or the mean
    of all."""
    pooler: str | None = None
    """none, classification: an activation name; a dense layer and it on that vector (BERT's pooler)."""
    labels: Count = 2
    """classification, token_classification: number of labels."""
    label_names: tuple[str, ...] = ()
    """Their names, `id2label` in config.json; empty: LABEL_0, LABEL_1 ..."""
    label_bias: bool = True
    """A bias over the labels (Hugging Face's decoders that classify texts have none)."""
    problem_type: ProblemType | None = None
    """classification: one label is right, or any number of them, or each is a number; None: a regression if there is
    one label, and otherwise as the targets are (see `anyformer.blocks.head.loss`). token_classification: None, or
    multi_label_classification of a single label, which a token has or not (ELECTRA's discriminator)."""
    dropout: Rate = 0.0
    """Dropout before the classifier."""

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the labels; LABEL_0, LABEL_1 ... where they have none, as in `transformers`."""
        return self.label_names or tuple(f"LABEL_{index}" for index in range(self.labels))

    @property
    def problem(self) -> ProblemType | None:
        """The problem type, also where the number of labels implies it; None: the targets say which it is."""
        return self.problem_type or ("regression" if self.labels == 1 else None)

    @override
    def _faults(self) -> Iterator[str]:
        if len(self.label_names) not in (0, self.labels):
            yield f"label_names: {len(self.label_names)} names don't fit {self.labels} labels"
        if len({*self.label_names}) < len(self.label_names):
            yield f"label_names: {quote(mode(self.label_names))} is the name of more than one label"
        is_binary = self.kind == "token_classification" and self.problem_type == "multi_label_classification"
        if self.problem_type is not None and self.kind != "classification" and not is_binary:
            yield f"problem_type: only a classification head has one, not {self.kind}"
        if is_binary and self.labels != 1:
            yield f"problem_type: a head that labels tokens has one label with it, not {self.labels}"
        if self.problem_type == "single_label_classification" and self.labels == 1:
            yield "problem_type: of one label alone none can be chosen: take two labels, or regression"


@dataclass(frozen=True, kw_only=True)
class PoolingConfig(Checked, part="pooling"):
    """Pooling, by which `anyformer.embed` makes one vector of a text (the pooling files of sentence-transformers)."""

    kind: Literal["mean", "first", "last", "max"] = "mean"
    dense: Annotated[tuple[Count, ...], Rule(lambda widths: len(widths) <= 8, "has at most 8 layers")] = ()
    """Widths of linear layers on the pooled vector (EmbeddingGemma: 3,072 and 768)."""
    dense_bias: bool = False
    """Their biases (LaBSE)."""
    dense_activation: str | None = None
    """The name of an activation after each of them (LaBSE: tanh); None: none."""
    normalize: bool = False
    """Divide the vector by its length."""
    max_tokens: int | None = None
    """Texts are cut to this many tokens; None: to the model's `max_length`."""
    prompt_names: tuple[str, ...] = ()
    """Names of the words that may be put before a text, such as query and document (E5, EmbeddingGemma)."""
    prompts: tuple[str, ...] = ()
    """The words, in the order of their names."""
    default_prompt: str | None = None
    """The name of those that are put before every text; None: none."""

    def prompt(self, name: str | None = None) -> str:
        """The words of that name, or of the default one. Raises UserError where there are none."""
        name = self.default_prompt if name is None else name
        known = dict(zip(self.prompt_names, self.prompts, strict=True))
        if name is not None and name not in known:
            hint = nearest(name, known) if known else "it has none"
            raise UserError(f"The model has no prompt {quote(name)} ({hint}).")
        return "" if name is None else known[name]

    @override
    def _faults(self) -> Iterator[str]:
        if len(self.prompt_names) != len(self.prompts):
            yield f"prompts: has {len(self.prompts)} for {len(self.prompt_names)} prompt_names"
        elif self.default_prompt not in (None, *self.prompt_names):
            yield f"default_prompt: {quote(self.default_prompt)} is none of prompt_names"


@dataclass(frozen=True, kw_only=True)
class InitConfig(Checked, part="init"):
    """Initialization of fresh weights; docs/initialization.md gives each family's source."""

    kind: str = "normal"
    """A name in `anyformer.blocks.initialization.INITIALIZERS`: normal, truncated_normal, xavier or t5."""
    std: Annotated[float, Rule(lambda std: 0 <= std < math.inf, "is a standard deviation, from 0 on")] = 0.02
    scale_residual: bool = False
    """Divide the std of the projections that write to the residual stream by sqrt(2 * layers) (GPT-2)."""


@dataclass(frozen=True, kw_only=True)
class SpecialTokens(Checked, part="special_tokens"):
    """Ids that generation and batching need. They describe the tokenizer that the weights were trained with."""

    bos: int | None = None
    eos: Annotated[tuple[int, ...], Rule(lambda ids: len(ids) <= 1000, "has at most 1000 tokens")] = ()
    """Generation stops at any of these."""
    pad: int | None = None
    decoder_start: int | None = None
    """Encoder-decoders: the first token that the decoder reads."""
