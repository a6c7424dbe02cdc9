"""The config of a whole model, and the difference of two."""

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Annotated, Any, Self, cast

from typing_extensions import override

from anyformer.config.block import AttentionConfig, FeedForwardConfig, NormConfig, OtherLayers
from anyformer.config.parts import (
    Count,
    EmbeddingConfig,
    Factor,
    HeadConfig,
    InitConfig,
    PoolingConfig,
    PositionConfig,
    Rate,
    SpecialTokens,
)
from anyformer.errors import UserError, quote
from anyformer.schema import Checked, Rule, change, differences, fits, make

MOST_LAYERS = 10_000
"""Layers of a stack: ten times the deepest known at most (Wang et al. 2022, DeepNet)."""
Layers = Annotated[int, Rule(lambda number: 0 <= number <= MOST_LAYERS, f"must lie in [0, {MOST_LAYERS:,}]")]


def check_layers(layers: object, subject: str) -> None:
    """Raise UserError for what is no number of layers of a model, before anything is made for each of them."""
    if not fits(layers, int) or not 0 <= cast("int", layers) <= MOST_LAYERS:
        raise UserError(f"{subject} must be a whole number in [0, {MOST_LAYERS:,}], and is {quote(layers)}.")


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
    other_layers: OtherLayers | None = None
    """Layers that differ in window, positions or feed-forward; None: all are alike."""
    distinct_layers: Count | None = None
    """Blocks of an encoder that have weights of their own, each of which makes up as many layers in a row (ALBERT: 1);
    None: every layer has."""
    position: PositionConfig = field(default_factory=PositionConfig)
    norm: NormConfig = field(default_factory=NormConfig)
    embedding: EmbeddingConfig = field(default_factory=EmbeddingConfig)
    head: HeadConfig = field(default_factory=HeadConfig)
    pooling: PoolingConfig = field(default_factory=PoolingConfig)
    init: InitConfig = field(default_factory=InitConfig)
    dropout: Rate = 0.0
    """Dropout on what each block adds to the residual stream."""
    residual_scale: Factor = 1.0
    """Factor on what each block adds to the residual stream (Granite's residual_multiplier)."""
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
        layout = self.position.layout if self.position.kind == "sinusoidal" else "halves"
        if layout != "halves" and self.d_model % 2:
            yield f"d_model: {layout} sines and cosines need an even width"
        if layout == "fairseq" and self.d_model < 4:
            yield "d_model: fairseq's sines have two wavelengths at least, so they need a width of 4"
        yield from self._faulty_other_layers()
        if self.norm.is_parallel and self.is_encoder_decoder:
            yield f"norm.placement: {self.norm.placement} is for models of one stack"
        padding = self.embedding.padding
        if padding is not None and not 0 <= padding < self.vocab_size:
            yield f"embedding.padding: token {padding} is outside the vocabulary of {self.vocab_size}"
        if self.position.skip_padding and padding is None:
            yield "position.skip_padding: needs embedding.padding, the token to skip"
        yield from self._faulty_encoder()
        is_pooled = self.head.kind == "classification" or self.head.pooler is not None
        if is_pooled and self.head.pooling == "first" and not self.is_encoder_only:
            yield "head.kind: only an encoder's first token sees the whole text: with a decoder, head.pooling is last"

    def _faulty_encoder(self) -> Iterator[str]:
        for name in ("distinct_layers", "embedding.width", "position.relative_bias"):
            if attrgetter(name)(self) and not self.is_encoder_only:
                yield f"{name}: only an encoder has it"
        if self.position.kind == "disentangled":
            if not self.is_encoder_only:
                yield "position.kind: only an encoder has disentangled positions"
            own = {"qk_norm": "none", "softcap": None, "latent": None, "sinks": False, "kv_heads": self.attention.heads}
            own = {"embedding.width": None, **{f"attention.{name}": value for name, value in own.items()}}
            for name, value in own.items():
                if attrgetter(name)(self) not in (None, value):
                    yield f"{name}: a model of disentangled positions has none of its own"
        has_first = self.norm.first or (self.norm.placement == "pre" and self.embedding.norm and self.is_encoder_only)
        if not has_first:
            yield "norm.first: only an encoder with pre-norm blocks and embedding.norm may do without it"
        if self.distinct_layers is not None and (self.attention.scale_by_layer or self.other_layers is not None):
            yield "distinct_layers: layers that share their weights are alike, without scale_by_layer or other_layers"
        is_narrow = self.embedding.width not in (None, self.d_model)
        if is_narrow and self.head.kind == "language_model" and self.embedding.tied and self.head.transform is None:
            yield "embedding.width: a tied head needs head.transform, a layer from d_model to the width of the table"

    def _faulty_other_layers(self) -> Iterator[str]:
        others, layers = self.other_layers, self.encoder_layers + self.decoder_layers
        if others is None:
            return
        if self.is_encoder_decoder:
            yield "other_layers: only models of one stack have them"
        if len(others.first) > layers:
            yield f"other_layers.first: {len(others.first)} layers are more than the model's {layers}"
        if others.position is not None and self.position.kind not in ("rotary", "none"):
            yield "other_layers.position: only rotary positions, or none, differ by layer"

    def _faulty_heads(self, name: str, attention: AttentionConfig) -> Iterator[str]:
        if attention.head_dim is None and self.d_model % attention.heads:
            yield f"{name}.heads: {attention.heads} can't share d_model {self.d_model} evenly (unless by a head_dim)"
        if attention.latent is not None and self.is_encoder_decoder:
            yield f"{name}.latent: latent attention is for models of one stack"
        if self.position.kind == "rotary":
            width = attention.head_dim or self.d_model // attention.heads
            if attention.latent is not None:
                if width <= attention.latent.rotary_dim:
                    yield f"{name}.latent.rotary_dim: {attention.latent.rotary_dim} is no part of a head of {width}"
                width = attention.latent.rotary_dim
            if width % 2:
                yield f"{name}.head_dim: rotary positions turn pairs, so it must be even, not {width}"
            rotated, scaling = int(width * self.position.rotary_fraction), self.position.scaling
            if rotated % 2 or not rotated:
                yield f"position.rotary_fraction: pairs are rotated, and {rotated} of {width} numbers are no pairs"
            if rotated <= 2 and scaling is not None and scaling.kind == "dynamic":
                yield f"{name}.head_dim: dynamic scaling needs heads wider than 2"
            if scaling is not None and scaling.kind == "longrope" and 2 * len(scaling.short_factor) != rotated:
                yield f"position.scaling.short_factor: {len(scaling.short_factor)} numbers for {rotated // 2} pairs"

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
    def head_dim(self) -> int:
        """Width of one head of `attention`, which has a field for it where that is not d_model / heads."""
        return self.attention.head_dim or self.d_model // self.attention.heads

    @property
    def context_length(self) -> int | None:
        """Longest sequence in tokens that the model can take; None: positions set no limit (none, distances)."""
        if self.position.kind in ("relative", "disentangled", "none"):
            return None
        scaling = self.position.scaling
        if scaling is not None and scaling.kind in ("linear", "dynamic"):
            return int(self.max_length * scaling.factor)
        return self.max_length

    @property
    def settled_length(self) -> int | None:
        """Longest text in tokens whose angles are those of a shorter one; None: any (they depend on no length)."""
        scaling = self.position.scaling
        if scaling is None or scaling.kind not in ("dynamic", "longrope"):
            return None
        return self.max_length if scaling.kind == "dynamic" else scaling.original_length

    def replace(self, **changes: Any) -> Self:
        """A copy with other values; nested fields by dict, config or dotted name.

        ``config.replace(d_model=64, attention={"heads": 2}, **{"norm.eps": 1e-6})``

        Raises ConfigError for an unknown field (with the nearest valid name), or a value that does not fit.
        """
        return change(self, changes)

    def others(self, layers: int) -> list[OtherLayers | None]:
        """Whether each of the first layers is one of `other_layers`: these, or None."""
        return [self.other_layers if self.other_layers and n in self.other_layers else None for n in range(layers)]

    def to_dict(self) -> dict[str, Any]:
        """Plain nested dicts, for YAML and JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The inverse of `to_dict`. Raises ConfigError for unknown, missing or misshapen fields."""
        return make(cls, from_earlier(values))


def from_earlier(values: Any) -> Any:
    """The fields of a config under the names that they have now: 0.2 had `window_from` and a switch `qk_norm`."""
    if not isinstance(values, Mapping):
        return values
    made = dict(cast("Mapping[str, Any]", values))
    for part in ("attention", "decoder_attention"):
        old: Any = made.get(part)
        if not isinstance(old, Mapping):
            continue
        attention = dict(cast("Mapping[str, Any]", old))
        start, norm = attention.pop("window_from", 0), attention.get("qk_norm")
        if isinstance(norm, bool):
            attention["qk_norm"] = "head" if norm else "none"
        if fits(start, int) and start > 0 and attention.get("window") is not None:
            layers = made.get("decoder_layers") or made.get("encoder_layers")
            first = min(start, layers if fits(layers, int) else MOST_LAYERS, MOST_LAYERS)
            made["other_layers"] = {"first": "." * first, "then": "o", "window": attention["window"]}
            attention["window"] = None
        made[part] = attention
    return made


def diff(a: ModelConfig, b: ModelConfig) -> dict[str, tuple[Any, Any]]:
    """Differences of two models: ``{"norm.kind": ("layer", "rms"), ...}``, in the config's own order.

    A part that only one of them has is compared as a whole (against None). `model_type`, a file format, is left out.
    """
    return {name: pair for name, pair in differences(a, b, "") if name != "model_type"}
