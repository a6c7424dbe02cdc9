"""The description of any transformer, as data.

A `ModelConfig` is a handful of small frozen dataclasses, each named after the block that it configures, in the order in
which a text goes through them. Decoder-only, encoder-only and encoder-decoder are not three classes but two numbers::

    encoder_layers  decoder_layers
          0               12          GPT-2, LLaMA   (generates)
         12                0          BERT           (understands)
          6                6          T5, the 2017 Transformer (rewrites one sequence as another)

The type of a field says which values it takes, and `_faults` what several fields together may not say. This module
imports no torch, so that the command line can show, compare and check configs at once.
"""

import dataclasses
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from statistics import mode
from typing import Annotated, Any, Literal, Self

from typing_extensions import override

from anyformer.errors import cut, quote
from anyformer.schema import Checked, Rule, change, differences, make

Count = Annotated[int, Rule(lambda number: number >= 1, "must be positive")]
Size = Annotated[int, Rule(lambda number: number >= 0, "can't be negative")]
Layers = Annotated[int, Rule(lambda number: 0 <= number <= 10_000, "must lie in [0, 10,000]")]
"""Layers of a stack: ten times the deepest known at most (Wang et al. 2022, DeepNet)."""
Rate = Annotated[float, Rule(lambda rate: 0 <= rate < 1, "is a dropout rate, in [0, 1)")]
Stretch = Annotated[float, Rule(lambda number: 1e-6 <= number <= 1e6, "is a positive number, from 1e-6 to 1e6")]
"""Numbers by which positions are scaled: ten thousand times those of published models, and no overflow."""
Theta = Annotated[float, Rule(lambda theta: 1 < theta <= 1e12, "lies above 1, up to 1e12")]

HeadKind = Literal["none", "language_model", "classification", "token_classification"]
ProblemType = Literal["single_label_classification", "multi_label_classification", "regression"]


@dataclass(frozen=True, kw_only=True)
class EmbeddingConfig(Checked, part="embedding"):
    """From token ids to vectors."""

    tied: bool = True
    """The language-model head uses the token table as its matrix (Press & Wolf 2017)."""
    scaled: bool = False
    """Multiply the token vectors by sqrt(d_model) (the 2017 paper, section 3.4)."""
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
    (Peng et al. 2023).
    """

    kind: Literal["linear", "dynamic", "llama3", "yarn"]
    factor: Stretch
    original_length: Count | None = None
    """The length of the first training (llama3, yarn)."""
    low_frequency: Stretch = 1.0
    high_frequency: Stretch = 4.0
    """llama3: wavelengths beyond original_length / low_frequency are divided, those within / high_frequency kept."""
    beta_fast: Stretch = 32.0
    beta_slow: Stretch = 1.0
    """yarn: rotations over the original length between which the two are blended."""
    attention_factor: Stretch | None = None
    """yarn: factor on cosines and sines; None: 0.1 ln(factor) + 1."""
    truncate: bool = True
    """yarn: round the blending range outwards to whole dimensions."""

    @override
    def _faults(self) -> Iterator[str]:
        if self.kind in ("llama3", "yarn") and self.original_length is None:
            yield f"original_length: {self.kind} scaling needs it"
        if self.kind == "llama3" and self.low_frequency >= self.high_frequency:
            yield f"low_frequency: {self.low_frequency} must be below high_frequency, {self.high_frequency}"


@dataclass(frozen=True, kw_only=True)
class PositionConfig(Checked, part="position"):
    """Positions: the order of the tokens.

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
    offset: Size = 0
    """learned: rows of the table before position 0 (2 in RoBERTa and BART)."""
    skip_padding: bool = False
    """learned: tokens equal to `embedding.padding` do not count as positions (RoBERTa)."""
    theta: Theta = 10_000.0
    """rotary: the base of the wavelengths."""
    scaling: RotaryScaling | None = None
    buckets: Annotated[int, Rule(lambda n: n >= 4 and n % 2 == 0, "is an even number of at least 4")] = 32
    """relative: number of distances told apart."""
    max_distance: int = 128
    """relative: distances from here on share one bucket."""

    @override
    def _faults(self) -> Iterator[str]:
        if self.max_distance <= self.buckets // 2:
            yield f"max_distance: must exceed half of the {self.buckets} buckets"
        if self.scaling is not None and self.kind != "rotary":
            yield f"scaling: only rotary positions are scaled, not {cut(self.kind)}"
        if self.skip_padding and self.kind != "learned":
            yield "skip_padding: only learned positions know it"


@dataclass(frozen=True, kw_only=True)
class AttentionConfig(Checked, part="attention"):
    """Multi-head attention (Vaswani et al. 2017, section 3.2), and what later models changed in it.

    ::

        heads    8 8 8 8 8 8 8 8      queries
        kv_heads 8 8 8 8 8 8 8 8      MHA: one key/value head for each query head
                 2 2 2 2              GQA: a group of query heads shares one
                 1                    MQA: all share one
    """

    heads: Count
    kv_heads: Count | None = None
    """Key/value heads; None: as many as `heads` (Ainslie et al. 2023)."""
    head_dim: Count | None = None
    """Width of one head; None: d_model / heads."""
    bias: bool = True
    """Bias on the query, key and value projections."""
    output_bias: bool = True
    """Bias on the output projection (Qwen2 has it only on the three others)."""
    scale: float | None = None
    """Factor on the scores; None: 1 / sqrt(head_dim). T5 uses 1 and folds it into the initialization."""
    scale_by_layer: bool = False
    """Divide the scores of layer i by i + 1 as well (the Mistral project's GPT-2s)."""
    window: Annotated[int, Rule(lambda number: number >= 1, "is at least 1, the token itself")] | None = None
    """A token sees this many tokens, itself included (Mistral's sliding window); None: all of them."""
    window_from: Size = 0
    """The first layer that has the window (Qwen2's max_window_layers)."""
    qk_norm: bool = False
    """Normalize each head's queries and keys (Qwen3)."""
    dropout: Rate = 0.0
    """Dropout on the attention weights."""

    @override
    def _faults(self) -> Iterator[str]:
        if self.heads % (self.kv_heads or self.heads) != 0:
            yield f"kv_heads: {self.heads} query heads can't share {self.kv_heads} key/value heads evenly"


@dataclass(frozen=True, kw_only=True)
class ExpertsConfig(Checked, part="feed_forward.experts"):
    """A mixture of experts (Shazeer et al. 2017): several feed-forward networks, of which a router chooses some for
    each token::

        y = sum of p[e] * network[e](x) over the largest p,  p = softmax(router(x))
    """

    count: Annotated[int, Rule(lambda number: 2 <= number <= 10_000, "must lie in [2, 10,000]")]
    """Networks, each as wide as `feed_forward.width`."""
    used: Count
    """Networks that each token is computed by."""
    normalized: bool = True
    """The weights of the chosen networks sum to 1 (Mixtral; without it OLMoE)."""
    balance: Annotated[float, Rule(lambda number: 0 <= number <= 100, "must lie in [0, 100]")] = 0.0
    """Factor of the load-balancing loss that is added in training (Fedus et al. 2021, equation 4)."""

    @override
    def _faults(self) -> Iterator[str]:
        if self.used > self.count:
            yield f"used: {self.used} of {self.count} experts can't be chosen"


@dataclass(frozen=True, kw_only=True)
class FeedForwardConfig(Checked, part="feed_forward"):
    """The feed-forward block: ``down(act(up(x)))``, or gated ``down(act(gate(x)) * up(x))`` (Shazeer 2020)."""

    width: Count
    activation: str = "gelu"
    """A name in `anyformer.blocks.feed_forward.ACTIVATIONS`: relu, gelu, gelu_tanh, silu, ..."""
    gated: bool = False
    bias: bool = True
    dropout: Rate = 0.0
    """Dropout on the inner activations."""
    experts: ExpertsConfig | None = None
    """None: one network for all tokens."""

    @override
    def _faults(self) -> Iterator[str]:
        if self.experts is not None and self.bias:
            yield "bias: networks of a mixture of experts have none"


@dataclass(frozen=True, kw_only=True)
class NormConfig(Checked, part="norm"):
    """Normalization, and where it sits.

    ::

        post (2017, BERT)   x = norm(x + f(x))
        pre  (GPT-2, LLaMA) x = x + f(norm(x)), and one more norm after the last block
    """

    kind: str = "layer"
    """A name in `anyformer.blocks.norm.NORMS`: layer (Ba et al. 2016), rms (Zhang & Sennrich 2019), or rms_offset, with
    1 + weight (Gemma)."""
    eps: Annotated[float, Rule(lambda number: number > 0, "must be positive")] = 1e-5
    placement: Literal["pre", "post"] = "pre"
    final: bool | None = None
    """One more norm after the last block; None: as the placement says. `torch.nn.Transformer` has one after post-norm
    blocks, too."""

    @property
    def has_final(self) -> bool:
        """Whether a norm follows the last block."""
        return self.placement == "pre" if self.final is None else self.final


@dataclass(frozen=True, kw_only=True)
class HeadConfig(Checked, part="head"):
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
    labels: Count = 2
    """classification, token_classification: number of labels."""
    label_names: tuple[str, ...] = ()
    """Their names, `id2label` in config.json; empty: LABEL_0, LABEL_1 ..."""
    label_bias: bool = True
    """A bias over the labels (Hugging Face's decoders that classify texts have none)."""
    problem_type: ProblemType | None = None
    """classification: one label is right, or any number of them, or each is a number; None: a regression if there is
    one label, and otherwise as the targets are (see `anyformer.blocks.head.loss`)."""
    dropout: Rate = 0.0
    """Dropout before the classifier."""

    @override
    def _faults(self) -> Iterator[str]:
        if len(self.label_names) not in (0, self.labels):
            yield f"label_names: {len(self.label_names)} names don't fit {self.labels} labels"
        if len({*self.label_names}) < len(self.label_names):
            yield f"label_names: {quote(mode(self.label_names))} is the name of more than one label"
        if self.problem_type is not None and self.kind != "classification":
            yield f"problem_type: only a classification head has one, not {self.kind}"
        if self.problem_type == "single_label_classification" and self.labels == 1:
            yield "problem_type: of one label alone none can be chosen: take two labels, or regression"


@dataclass(frozen=True, kw_only=True)
class PoolingConfig(Checked, part="pooling"):
    """Pooling, by which `anyformer.embed` makes one vector of a text (the pooling files of sentence-transformers)."""

    kind: Literal["mean", "first", "last", "max"] = "mean"
    normalize: bool = False
    max_tokens: int | None = None
    """Texts are cut to this many tokens; None: to the model's `max_length`."""


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


@dataclass(frozen=True, kw_only=True)
class ModelConfig(Checked):
    """One transformer. Raises ConfigError for a field, or a combination of fields, that describes none."""

    vocab_size: Count
    d_model: Count
    encoder_layers: Layers = 0
    decoder_layers: Layers = 0
    max_length: Count = 1024
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
    dropout: Rate = 0.0
    """Dropout on what each block adds to the residual stream."""
    special_tokens: SpecialTokens = field(default_factory=SpecialTokens)
    model_type: str = "anyformer"
    """The Hugging Face `model_type` that it is written as, where that can express it. No block reads this."""

    @override
    def _faults(self) -> Iterator[str]:
        if self.encoder_layers + self.decoder_layers == 0:
            yield "encoder_layers, decoder_layers: both are 0, and a model needs at least one stack"
        for name in ("source_vocab_size", "decoder_attention", "decoder_feed_forward"):
            if getattr(self, name) is not None and not self.is_encoder_decoder:
                yield f"{name}: only an encoder-decoder has it"
        yield from self._faulty_heads("attention", self.attention)
        yield from self._faulty_heads("decoder_attention", self.decoder_attention or self.attention)
        if self.d_model % 2 and (self.position.kind, self.position.layout) == ("sinusoidal", "interleaved"):
            yield "d_model: sines and cosines interleave only over an even width"
        padding = self.embedding.padding
        if padding is not None and not 0 <= padding < self.vocab_size:
            yield f"embedding.padding: token {padding} is outside the vocabulary of {self.vocab_size}"
        if self.position.skip_padding and not self.is_encoder_only:
            yield "position.skip_padding: only an encoder sees all its padding at once"
        if self.position.skip_padding and padding is None:
            yield "position.skip_padding: needs embedding.padding, the token to skip"
        is_pooled = self.head.kind == "classification" or self.head.pooler is not None
        if is_pooled and self.head.pooling == "first" and not self.is_encoder_only:
            yield "head.kind: only an encoder's first token sees the whole text: with a decoder, head.pooling is last"

    def _faulty_heads(self, name: str, attention: AttentionConfig) -> Iterator[str]:
        if attention.head_dim is None and self.d_model % attention.heads:
            yield f"{name}.heads: {attention.heads} can't share d_model {self.d_model} evenly (unless by a head_dim)"
        if self.position.kind == "rotary":
            width = attention.head_dim or self.d_model // attention.heads
            if width % 2:
                yield f"{name}.head_dim: rotary positions turn pairs, so it must be even, not {width}"
            if width <= 2 and self.position.scaling is not None and self.position.scaling.kind == "dynamic":
                yield f"{name}.head_dim: dynamic scaling needs heads wider than 2"

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

        Raises ConfigError for an unknown field (with the nearest valid name), or a value that does not fit.
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

    A part that only one of them has is compared as a whole (against None). `model_type`, a file format, is left out.
    """
    return {name: pair for name, pair in differences(a, b, "") if name != "model_type"}
