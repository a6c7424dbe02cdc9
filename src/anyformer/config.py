"""The description of any transformer, as data.

A `ModelConfig` is a handful of small frozen dataclasses, each named after the block that it configures.
Decoder-only, encoder-only and encoder-decoder are not three classes but two numbers::

    encoder_layers  decoder_layers
          0               12          GPT-2, LLaMA   (generates)
         12                0          BERT           (understands)
          6                6          T5, the 2017 Transformer (rewrites one sequence as another)

This module imports no torch, so that the command line can show, compare and check configs at once.
"""

import dataclasses
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Self, cast, get_args

from anyformer.errors import cut, nearest, quote
from anyformer.schema import ConfigError, change, check, differences, make

_DEEPEST = 10_000
"""Layers of a stack: ten times the deepest known (Wang et al. 2022, DeepNet)."""

_MOST_EOS = 1000
_STRETCH = 1e6
"""Numbers by which positions are scaled: ten thousand times those of published models, and no overflow."""
_LARGEST_THETA = 1e12

Scaling = Literal["linear", "dynamic", "llama3", "yarn"]


def _require(condition: bool, reason: str) -> None:
    if not condition:
        raise ConfigError(f"{reason}.")


def _require_rate(rate: float, name: str) -> None:
    _require(0.0 <= rate < 1.0, f"{name}: a dropout rate is in [0, 1), not {rate}")


@dataclass(frozen=True, kw_only=True)
class AttentionConfig:
    """Multi-head attention (Vaswani et al. 2017, section 3.2), and what later models changed in it.

    ::

        heads    8 8 8 8 8 8 8 8      queries
        kv_heads 8 8 8 8 8 8 8 8      MHA: one key/value head for each query head
                 2 2 2 2              GQA: a group of query heads shares one
                 1                    MQA: all share one
    """

    heads: int
    kv_heads: int | None = None
    """Key/value heads; None: as many as `heads` (Ainslie et al. 2023)."""
    head_dim: int | None = None
    """Width of one head; None: d_model / heads."""
    bias: bool = True
    """Bias on the query, key and value projections."""
    output_bias: bool = True
    """Bias on the output projection (Qwen2 has it only on the three others)."""
    scale: float | None = None
    """Factor on the scores; None: 1 / sqrt(head_dim). T5 uses 1 and folds it into the initialization."""
    scale_by_layer: bool = False
    """Divide the scores of layer i by i + 1 as well (the Mistral project's GPT-2s)."""
    window: int | None = None
    """A token sees this many tokens, itself included (Mistral's sliding window); None: all of them."""
    window_from: int = 0
    """The first layer that has the window (Qwen2's max_window_layers)."""
    qk_norm: bool = False
    """Normalize each head's queries and keys (Qwen3)."""
    dropout: float = 0.0
    """Dropout on the attention weights."""

    def __post_init__(self) -> None:
        _require(self.heads >= 1, f"attention.heads: at least one head is needed, not {self.heads}")
        kv_heads = self.kv_heads if self.kv_heads is not None else self.heads
        _require(
            kv_heads >= 1 and self.heads % kv_heads == 0,
            f"attention.kv_heads: {self.heads} query heads can't be shared out evenly among {kv_heads} key/value heads",
        )
        _require(self.head_dim is None or self.head_dim >= 1, "attention.head_dim: must be positive")
        _require(self.window is None or self.window >= 1, "attention.window: a token must see itself")
        _require(self.window_from >= 0, "attention.window_from: is a layer number, 0 or more")
        _require_rate(self.dropout, "attention.dropout")


@dataclass(frozen=True, kw_only=True)
class FeedForwardConfig:
    """The feed-forward block: ``down(act(up(x)))``, or gated ``down(act(gate(x)) * up(x))`` (Shazeer 2020)."""

    width: int
    activation: str = "gelu"
    """A name in `anyformer.blocks.feed_forward.ACTIVATIONS`: relu, gelu, gelu_tanh, silu, ..."""
    gated: bool = False
    bias: bool = True
    dropout: float = 0.0
    """Dropout on the inner activations."""

    def __post_init__(self) -> None:
        _require(self.width >= 1, f"feed_forward.width: must be positive, not {self.width}")
        _require_rate(self.dropout, "feed_forward.dropout")


@dataclass(frozen=True, kw_only=True)
class RotaryScaling:
    """How a rotary model is stretched past the length it was trained on.

    `linear` divides every frequency by `factor`; `dynamic` raises theta as the sequence outgrows `max_length`
    (NTK); `llama3` divides only the long wavelengths; `yarn` blends both and sharpens the attention
    (Peng et al. 2023).
    """

    kind: Scaling
    factor: float
    original_length: int | None = None
    """The length of the first training (llama3, yarn)."""
    low_frequency: float = 1.0
    high_frequency: float = 4.0
    """llama3: wavelengths beyond original_length / low_frequency are divided, those within / high_frequency kept."""
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    """yarn: rotations over the original length between which the two are blended."""
    attention_factor: float | None = None
    """yarn: factor on cosines and sines; None: 0.1 ln(factor) + 1."""
    truncate: bool = True
    """yarn: round the blending range outwards to whole dimensions."""

    def __post_init__(self) -> None:
        name = "position.scaling"
        _require(
            self.kind in get_args(Scaling),
            f"{name}: unknown kind {quote(self.kind)} ({nearest(self.kind, get_args(Scaling))})",
        )
        for part in ("factor", "low_frequency", "high_frequency", "beta_fast", "beta_slow", "attention_factor"):
            value = getattr(self, part)
            _require(
                value is None or 1 / _STRETCH <= value <= _STRETCH,
                f"{name}.{part}: is a positive number, from 1e-6 to 1e6, not {value}",
            )
        _require(
            self.original_length is None or self.original_length >= 1,
            f"{name}.original_length: must be positive, not {self.original_length}",
        )
        if self.kind in ("llama3", "yarn"):
            _require(self.original_length is not None, f"{name}.original_length: {self.kind} scaling needs it")
        if self.kind == "llama3":
            _require(
                self.low_frequency < self.high_frequency,
                f"{name}.low_frequency: must be below high_frequency, {self.low_frequency} is not below "
                f"{self.high_frequency}",
            )


@dataclass(frozen=True, kw_only=True)
class PositionConfig:
    """How the order of the tokens enters.

    ========== =================================================== ==========================================
    kind       what it does                                        source
    ========== =================================================== ==========================================
    none       nothing (a causal decoder can still learn order)    Haviv et al. 2022
    sinusoidal adds fixed sines and cosines to the embeddings      Vaswani et al. 2017, section 3.5
    learned    adds a learned vector for each position             GPT-2, BERT
    rotary     rotates queries and keys by their position          Su et al. 2021
    relative   adds a learned bias for each distance to the scores T5: Raffel et al. 2020, section 2.1
    ========== =================================================== ==========================================
    """

    kind: str = "learned"
    """A name in `anyformer.blocks.position.POSITIONS`."""
    layout: Literal["interleaved", "halves"] = "halves"
    """sinusoidal: sine and cosine alternate (the paper's text), or all sines come first (its code, Marian)."""
    offset: int = 0
    """learned: rows of the table before position 0 (2 in RoBERTa and BART)."""
    skip_padding: bool = False
    """learned: tokens equal to `embedding.padding` do not count as positions (RoBERTa)."""
    theta: float = 10_000.0
    """rotary: the base of the wavelengths."""
    scaling: RotaryScaling | None = None
    buckets: int = 32
    """relative: number of distances told apart."""
    max_distance: int = 128
    """relative: distances from here on share one bucket."""

    def __post_init__(self) -> None:
        _require(
            self.layout in ("interleaved", "halves"),
            f"position.layout: is interleaved or halves, not {quote(self.layout)}",
        )
        _require(self.offset >= 0, "position.offset: can't be negative")
        _require(1 < self.theta <= _LARGEST_THETA, f"position.theta: lies above 1, up to 1e12, not {self.theta}")
        _require(
            self.buckets >= 4 and self.buckets % 2 == 0,
            f"position.buckets: an even number of at least 4, not {self.buckets}",
        )
        _require(
            self.max_distance > self.buckets // 2,
            f"position.max_distance: must exceed half of the {self.buckets} buckets",
        )
        if self.scaling is not None:
            _require(self.kind == "rotary", f"position.scaling: only rotary positions are scaled, not {cut(self.kind)}")
        if self.skip_padding:
            _require(self.kind == "learned", "position.skip_padding: only learned positions know it")


@dataclass(frozen=True, kw_only=True)
class NormConfig:
    """Normalization, and where it sits.

    ::

        post (2017, BERT)   x = norm(x + f(x))
        pre  (GPT-2, LLaMA) x = x + f(norm(x)), and one more norm after the last block
    """

    kind: str = "layer"
    """A name in `anyformer.blocks.norm.NORMS`: layer (Ba et al. 2016) or rms (Zhang & Sennrich 2019)."""
    eps: float = 1e-5
    placement: Literal["pre", "post"] = "pre"
    final: bool | None = None
    """One more norm after the last block; None: as the placement says. `torch.nn.Transformer` has one after post-norm
    blocks, too."""

    @property
    def has_final(self) -> bool:
        """Whether a norm follows the last block."""
        return self.placement == "pre" if self.final is None else self.final

    def __post_init__(self) -> None:
        _require(self.eps > 0, f"norm.eps: must be positive, not {self.eps}")
        _require(self.placement in ("pre", "post"), f"norm.placement: is pre or post, not {quote(self.placement)}")


@dataclass(frozen=True, kw_only=True)
class EmbeddingConfig:
    """From token ids to vectors."""

    tied: bool = True
    """The language-model head uses the token table as its matrix (Press & Wolf 2017)."""
    scaled: bool = False
    """Multiply the token vectors by sqrt(d_model) (the 2017 paper, section 3.4)."""
    segments: int = 0
    """Number of segment (token type) vectors: BERT's sentence A and B."""
    norm: bool = False
    """Normalize the sum (BERT, BART)."""
    padding: int | None = None
    """Token id whose row learns nothing from being read."""
    ngrams: int = 1
    """Longest run of tokens that has a vector of its own, added to that of its last token (Pagnoni et al. 2024,
    section 3.2.1; Huang et al. 2025); 1: single tokens only. Small alphabets, such as characters, gain much."""
    ngram_rows: int = 65536
    """Vectors that all runs share by hash."""
    dropout: float = 0.0

    def __post_init__(self) -> None:
        _require(self.segments >= 0, "embedding.segments: can't be negative")
        _require(self.ngrams >= 1, f"embedding.ngrams: at least 1, a token alone, not {self.ngrams}")
        _require(self.ngram_rows >= 1, f"embedding.ngram_rows: must be positive, not {self.ngram_rows}")
        _require_rate(self.dropout, "embedding.dropout")


HeadKind = Literal["none", "language_model", "classification", "token_classification"]
ProblemType = Literal["single_label_classification", "multi_label_classification", "regression"]


@dataclass(frozen=True, kw_only=True)
class HeadConfig:
    """From hidden states to logits."""

    kind: HeadKind = "language_model"
    """none: hidden states only; language_model: logits over the vocabulary (next token, or the masked one);
    classification: one answer a sequence; token_classification: one a token."""
    transform: str | None = None
    """language_model: an activation name; a dense layer, it and a norm come first (BERT)."""
    bias: Literal["none", "learned", "fixed"] = "none"
    """language_model: a bias over the vocabulary; fixed: stored and added but not trained (Marian, BART)."""
    scaled: bool = False
    """language_model: divide the hidden states by sqrt(d_model) (T5 v1.0)."""
    pooling: Literal["first", "last"] = "first"
    """classification: the token that stands for the text, the first (BERT) or the last (decoders, BART)."""
    pooler: str | None = None
    """none, classification: an activation name; a dense layer and it on that token (BERT's pooler)."""
    labels: int = 2
    """classification, token_classification: number of labels."""
    label_names: tuple[str, ...] = ()
    """Their names, `id2label` in config.json; empty: LABEL_0, LABEL_1 ..."""
    label_bias: bool = True
    """A bias over the labels (Hugging Face's decoders that classify texts have none)."""
    problem_type: ProblemType | None = None
    """classification: one label is right, or any number of them, or each is a number; None: a regression if there is
    one label, and otherwise as the targets are (see `anyformer.blocks.head.loss`)."""
    dropout: float = 0.0
    """Dropout before the classifier."""

    def __post_init__(self) -> None:
        _require(
            self.kind in get_args(HeadKind),
            f"head.kind: {quote(self.kind)} is unknown ({nearest(self.kind, get_args(HeadKind))})",
        )
        _require(
            self.bias in ("none", "learned", "fixed"), f"head.bias: is none, learned or fixed, not {quote(self.bias)}"
        )
        _require(
            self.pooling in ("first", "last"),
            f"head.pooling: is the first or the last token, not {quote(self.pooling)}",
        )
        _require(self.labels >= 1, "head.labels: at least one label is needed")
        if self.label_names:
            _require(
                len(self.label_names) == self.labels,
                f"head.label_names: {len(self.label_names)} names don't fit {self.labels} labels",
            )
            twice = [name for name, count in Counter(self.label_names).items() if count > 1]
            _require(not twice, f"head.label_names: {quote(twice and twice[0])} is the name of more than one label")
        _require(
            self.problem_type is None or self.problem_type in get_args(ProblemType),
            f"head.problem_type: {quote(self.problem_type)} is unknown "
            f"({nearest(str(self.problem_type), get_args(ProblemType))})",
        )
        _require(
            self.problem_type is None or self.kind == "classification",
            f"head.problem_type: only a classification head has one, not {self.kind}",
        )
        _require(
            self.problem_type != "single_label_classification" or self.labels > 1,
            "head.problem_type: of one label alone none can be chosen: take two labels, or regression",
        )
        _require_rate(self.dropout, "head.dropout")


@dataclass(frozen=True, kw_only=True)
class PoolingConfig:
    """How `anyformer.embed` makes one vector of a text (the pooling files of sentence-transformers)."""

    kind: Literal["mean", "first", "last", "max"] = "mean"
    normalize: bool = False
    max_tokens: int | None = None
    """Texts are cut to this many tokens; None: to the model's `max_length`."""


@dataclass(frozen=True, kw_only=True)
class InitConfig:
    """How fresh weights are drawn; docs/initialization.md gives each family's source."""

    kind: str = "normal"
    """A name in `anyformer.blocks.initialization.INITIALIZERS`: normal, truncated_normal, xavier or t5."""
    std: float = 0.02
    scale_residual: bool = False
    """Divide the std of the projections that write to the residual stream by sqrt(2 * layers) (GPT-2)."""

    def __post_init__(self) -> None:
        _require(0 <= self.std < math.inf, f"init.std: a standard deviation is a number from 0 on, not {self.std}")


@dataclass(frozen=True, kw_only=True)
class SpecialTokens:
    """Ids that generation and batching need. They describe the tokenizer that the weights were trained with."""

    bos: int | None = None
    eos: tuple[int, ...] = ()
    """Generation stops at any of these."""
    pad: int | None = None
    decoder_start: int | None = None
    """Encoder-decoders: the first token that the decoder reads."""

    def __post_init__(self) -> None:
        _require(len(self.eos) <= _MOST_EOS, f"special_tokens.eos: at most {_MOST_EOS} tokens, not {len(self.eos):,}")


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """One transformer.

    Raises:
        ConfigError: a field, or a combination of fields, that describes no transformer; it names the field.
    """

    vocab_size: int
    d_model: int
    encoder_layers: int = 0
    decoder_layers: int = 0
    max_length: int = 1024
    """Longest sequence in tokens: rows of the position table, or the length that the model was trained on."""
    source_vocab_size: int | None = None
    """Encoder-decoders: the size of a table of the encoder's own; None: one table serves both stacks."""
    attention: AttentionConfig
    feed_forward: FeedForwardConfig
    decoder_attention: AttentionConfig | None = None
    decoder_feed_forward: FeedForwardConfig | None = None
    """Encoder-decoders: the decoder's own blocks; None: as the encoder's."""
    position: PositionConfig = field(default_factory=PositionConfig)
    norm: NormConfig = field(default_factory=NormConfig)
    embedding: EmbeddingConfig = field(default_factory=EmbeddingConfig)
    head: HeadConfig = field(default_factory=HeadConfig)
    pooling: PoolingConfig = field(default_factory=PoolingConfig)
    init: InitConfig = field(default_factory=InitConfig)
    dropout: float = 0.0
    """Dropout on what each block adds to the residual stream."""
    special_tokens: SpecialTokens = field(default_factory=SpecialTokens)
    model_type: str = "anyformer"
    """The Hugging Face `model_type` that it is written as, where that can express it. No block reads this."""

    def __post_init__(self) -> None:
        check(self)
        _require(self.vocab_size >= 1, f"vocab_size: must be positive, not {self.vocab_size}")
        _require(self.d_model >= 1, f"d_model: must be positive, not {self.d_model}")
        for name in ("encoder_layers", "decoder_layers"):
            _require(0 <= getattr(self, name) <= _DEEPEST, f"{name}: must lie in [0, {_DEEPEST:,}]")
        _require(
            self.encoder_layers + self.decoder_layers > 0,
            "encoder_layers, decoder_layers: both are 0, and a model needs at least one stack",
        )
        _require(self.max_length >= 1, f"max_length: must be positive, not {self.max_length}")
        _require_rate(self.dropout, "dropout")
        for name in ("attention", "decoder_attention"):
            self._check_attention(cast("AttentionConfig | None", getattr(self, name)), name)
        if self.position.kind == "sinusoidal" and self.position.layout == "interleaved":
            _require(self.d_model % 2 == 0, "d_model: sines and cosines interleave only over an even width")
        if not (self.encoder_layers and self.decoder_layers):
            for name in ("source_vocab_size", "decoder_attention", "decoder_feed_forward"):
                _require(getattr(self, name) is None, f"{name}: only an encoder-decoder has it")
        if self.embedding.padding is not None:
            _require(
                0 <= self.embedding.padding < self.vocab_size,
                f"embedding.padding: token {self.embedding.padding} is outside the vocabulary of {self.vocab_size}",
            )
        if self.position.skip_padding:
            _require(self.decoder_layers == 0, "position.skip_padding: only an encoder sees all its padding at once")
            _require(
                self.embedding.padding is not None, "position.skip_padding: needs embedding.padding, the token to skip"
            )
        if (self.head.kind == "classification" or self.head.pooler is not None) and self.head.pooling == "first":
            _require(
                self.decoder_layers == 0,
                "head.kind: the pooled first token sees the whole text only in an encoder: with a decoder, "
                "head.pooling is last",
            )

    def _check_attention(self, attention: AttentionConfig | None, name: str) -> None:
        if attention is None:
            return
        if attention.head_dim is None:
            _require(
                self.d_model % attention.heads == 0,
                f"{name}.heads: {attention.heads} heads can't share d_model {self.d_model} evenly "
                "(give head_dim to allow it)",
            )
        if self.position.kind == "rotary":
            width = attention.head_dim or self.d_model // attention.heads
            _require(width % 2 == 0, f"{name}.head_dim: rotary positions turn pairs, so it must be even, not {width}")
            if self.position.scaling is not None and self.position.scaling.kind == "dynamic":
                _require(width > 2, f"{name}.head_dim: dynamic scaling needs heads wider than 2")

    @property
    def is_decoder_only(self) -> bool:
        """Generates a text token by token."""
        return self.encoder_layers == 0

    @property
    def is_encoder_only(self) -> bool:
        """Reads a text as a whole."""
        return self.decoder_layers == 0

    @property
    def is_encoder_decoder(self) -> bool:
        """Reads one text and writes another."""
        return self.encoder_layers > 0 and self.decoder_layers > 0

    @property
    def context_length(self) -> int | None:
        """Longest sequence in tokens that the model can take; None: positions set no limit (relative, none)."""
        if self.position.kind in ("relative", "none"):
            return None
        scaling = self.position.scaling
        if scaling is not None and scaling.kind in ("linear", "dynamic"):
            return int(self.max_length * scaling.factor)
        return self.max_length

    def replace(self, **changes: Any) -> Self:
        """A copy with other values; nested fields by dict, config or dotted name.

        ``config.replace(d_model=64, attention={"heads": 2}, **{"norm.eps": 1e-6})``

        Raises:
            ConfigError: an unknown field (with the nearest valid name), or a value that does not fit.
        """
        return change(self, changes)

    def to_dict(self) -> dict[str, Any]:
        """Plain nested dicts, for YAML and JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The inverse of `to_dict`. Raises ConfigError for unknown, missing or misshapen fields."""
        return make(cls, values)


def diff(a: ModelConfig, b: ModelConfig) -> dict[str, tuple[Any, Any]]:
    """Differences of two models: ``{"norm.kind": ("layer", "rms"), ...}``, in the config's own order.

    A part that only one of them has is compared as a whole (against None). `model_type` names a file format,
    not an architecture, and is left out.
    """
    return {name: pair for name, pair in differences(a, b, "") if name != "model_type"}
