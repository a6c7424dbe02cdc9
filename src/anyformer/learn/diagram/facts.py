"""Statements of a drawing about models: each has a place, which is the same for every model.

::

    encoder.embedding.table          50,257 × 768
    decoder.attention                attention          a block: what has no entry is drawn as a ghost
    decoder.attention.heads          12 heads × 64
    decoder.attention.before         layer norm         before the block; .after: after the sum; .output: of the block

Models are compared place by place.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

from anyformer.blocks.position import POSITIONS, PositionalEncoding
from anyformer.config import AttentionConfig, ModelConfig
from anyformer.terminal import shorten

OTHER = "■"
"""The mark of layers that differ from the others of a stack."""
STACKS = ("encoder", "decoder")
SUBLAYERS = ("attention", "cross-attention", "feed-forward")

_LONGEST = 200
"""Characters of a statement: a file may call a block anything."""
_NORMS = {
    "layer": "layer norm",
    "layer_no_bias": "layer norm",
    "rms": "RMS norm",
    "rms_offset": "RMS 1+w",
    "rms_plain": "RMS norm",
}
_PLACES = {"post": ("after",), "branch": ("output",), "sandwich": ("before", "output")}
"""Places of the norms of a block where they are not before it: on its output, and after the sum."""
_BIASES = {
    (True, True): "bias",
    (True, False): "bias: q, k, v",
    (False, True): "bias: output",
    (False, False): "no bias",
}
"""By whether the projections to queries, keys and values have one, and the projection of the output."""
_HEADS = {
    "none": "pooled vector",
    "language_model": "language model",
    "classification": "classifier of texts",
    "token_classification": "classifier of tokens",
}


@dataclass(frozen=True)
class Fact:
    """One statement about a model."""

    text: str
    fields: tuple[str, ...]
    """The fields of the config that it is read from."""


Facts = Mapping[str, Fact]
"""Facts by their place."""


def facts(config: ModelConfig) -> Facts:
    """All that a drawing says of a model. What the model lacks has no entry."""
    of_stacks = (
        (f"{stack}{place and f'.{place}'}", fact)
        for stack in STACKS
        if layers(config, stack)
        for place, fact in _stack(config, stack)
    )
    return {place: replace(fact, text=shorten(fact.text, _LONGEST)) for place, fact in chain(of_stacks, _head(config))}


def layers(config: ModelConfig, stack: str) -> int:
    """Number of blocks of a stack."""
    return config.encoder_layers if stack == "encoder" else config.decoder_layers


def attention_of(config: ModelConfig, stack: str) -> AttentionConfig:
    """The attention of a stack."""
    return (config.decoder_attention if stack == "decoder" else None) or config.attention


def windows(config: ModelConfig, stack: str) -> list[int | None]:
    """The windows of the stack's layers, each once; None: a token sees any distance."""
    attention = attention_of(config, stack)
    others = config.others(layers(config, stack))
    return [*dict.fromkeys(attention.window if other is None else other.window for other in others)]


def _stack(config: ModelConfig, stack: str) -> Iterator[tuple[str, Fact]]:
    count = f"{stack}_layers"
    yield "", Fact(stack, (count,))
    shared = config.distinct_layers is not None and config.distinct_layers < layers(config, stack)
    if shared:
        blocks = _many(config.distinct_layers or 1, "block")
        yield "layers", Fact(f"× {layers(config, stack):,}, {blocks}", (count, "distinct_layers"))
    else:
        others = sum(each is not None for each in config.others(layers(config, stack)))
        text = f"× {_many(layers(config, stack), 'layer')}" + (f", {others:,} {OTHER}" if others else "")
        yield "layers", Fact(text, (count, *(_others(stack) if others else ())))
    yield from _input(config, stack)
    for block in SUBLAYERS:
        if block != "cross-attention" or (stack == "decoder" and config.is_encoder_decoder):
            yield from _block(config, stack, block)
    if config.norm.has_final:
        yield "final_norm", Fact(_norm(config), ("norm.placement", "norm.final", "norm.kind"))


def _input(config: ModelConfig, stack: str) -> Iterator[tuple[str, Fact]]:
    embedding, width = config.embedding, f"{config.d_model:,}"
    columns, sized = f"{embedding.width or config.d_model:,}", "embedding.width" if embedding.width else "d_model"
    own = stack == "encoder" and config.source_vocab_size is not None
    size = config.source_vocab_size if own else config.vocab_size
    yield "embedding", Fact("token embedding", ())
    yield "embedding.table", Fact(f"{size:,} × {columns}", ("source_vocab_size" if own else "vocab_size", sized))
    if embedding.width:
        yield "embedding.projection", Fact(f"to {width} after the norm", ("embedding.width", "d_model"))
    if stack == "decoder" and config.is_encoder_decoder and config.source_vocab_size is None:
        yield "embedding.shared", Fact("the encoder's", ("encoder_layers", "source_vocab_size"))
    if embedding.scaled:
        yield "embedding.scaled", Fact(f"× √{width}", ("embedding.scaled", "d_model"))
    elif embedding.scale != 1.0:
        yield "embedding.scaled", Fact(f"× {embedding.scale:g}", ("embedding.scale",))
    if _acts(config, "embed"):
        yield "position", _position(config, ("learned", "sinusoidal"))
    if embedding.segments:
        yield "segments", Fact(_many(embedding.segments, "segment"), ("embedding.segments",))
    if embedding.ngrams > 1:
        text = f"n-grams to {embedding.ngrams:,}, {embedding.ngram_rows:,}"
        yield "ngrams", Fact(text, ("embedding.ngrams", "embedding.ngram_rows"))
    if embedding.norm:
        yield "embedding_norm", Fact(_norm(config), ("embedding.norm", "norm.kind"))
    yield "stream", Fact(f"batch × {time(config, stack)} × {width}", ("encoder_layers", "decoder_layers", "d_model"))


def time(config: ModelConfig, stack: str) -> str:
    """The dimension of a stack's tokens."""
    return "source" if stack == "encoder" and config.is_encoder_decoder else "time"


def _block(config: ModelConfig, stack: str, block: str) -> Iterator[tuple[str, Fact]]:
    stacks = ("encoder_layers", "decoder_layers")
    yield block, Fact(block, stacks if block == "cross-attention" else (f"{stack}_layers",))
    for place in _PLACES.get(config.norm.placement, ("before",)):
        if place == "output":  # written over a short arrow; its kind is that of all norms
            yield f"{block}.{place}", Fact("norm", ("norm.placement",))
            continue
        is_absent = not config.norm.first and (block, place) == ("attention", "before")
        text, fields = ("from layer 1", ("norm.first",)) if is_absent else (_norm(config), ())
        yield f"{block}.{place}", Fact(text, ("norm.placement", "norm.kind", *fields))
    described = _feed_forward(config, stack) if block == "feed-forward" else _attention(config, stack, block)
    yield from ((f"{block}.{place}", fact) for place, fact in described)


def _attention(config: ModelConfig, stack: str, block: str) -> Iterator[tuple[str, Fact]]:
    attention, field = attention_of(config, stack), _names("attention", config.decoder_attention, stack)
    head_dim = attention.head_dim or config.d_model // attention.heads
    width = field("head_dim") if attention.head_dim else (*field("heads", "head_dim"), "d_model")
    yield "heads", Fact(f"{_many(attention.heads, 'head')} × {head_dim:,}", (*field("heads"), *width))
    if attention.latent is None:
        yield "kv_heads", Fact(_many(attention.kv_heads or attention.heads, "KV head"), field("kv_heads", "heads"))
    else:
        latent = attention.latent
        text = f"latent {latent.rank:,} + {latent.rotary_dim:,}"
        yield "kv_heads", Fact(text, ("attention.latent", "attention.latent.rank", "attention.latent.rotary_dim"))
    if block == "attention":
        yield "mask", _mask(config, stack, field)
        if _acts(config, "rotation", "bias", "relative_vectors"):
            yield "position", _position(config, ("rotary", "relative", "disentangled"))
        yield from _reach(config)
    else:
        yield "mask", Fact("full mask, of the source", ())
    yield "bias", Fact(_BIASES[attention.bias, attention.output_bias], field("bias", "output_bias"))
    summed = 3 if config.position.kind == "disentangled" else 1
    scale = f"scale {attention.scale:g}" if attention.scale is not None else f"scale 1/√{summed * head_dim:,}"
    depth, scale_fields = (" / layer", ("scale", "scale_by_layer")) if attention.scale_by_layer else ("", ("scale",))
    implied = () if attention.scale is not None else (*width, *(("position.kind",) if summed > 1 else ()))
    yield "scale", Fact(scale + depth, (*field(*scale_fields), *implied))
    if attention.qk_norm != "none":
        yield "qk_norm", Fact("QK norm", field("qk_norm"))
    if attention.sinks:
        yield "sinks", Fact("sinks", field("sinks"))
    other = next(filter(None, config.others(layers(config, stack))), None)
    if other is not None and other.position is not None and block == "attention":
        text = f"θ {other.position.theta:,.12g}" if other.position.kind == "rotary" else "no position"
        yield "others", Fact(f"{OTHER} {text}", _others(stack, "position", "position.kind", "position.theta"))


def _mask(config: ModelConfig, stack: str, field: Callable[..., tuple[str, ...]]) -> Fact:
    found = windows(config, stack)
    others = next(filter(None, config.others(layers(config, stack))), None)
    sizes = [*dict.fromkeys(f"{window:,}" for window in found if window is not None)]
    fields = field("window") if sizes or others is not None else ()
    if others is not None:
        fields += _others(stack, "window")
    if not sizes:
        return Fact("causal mask" if stack == "decoder" else "full mask", fields)
    window = f"windows {' and '.join(sizes)}" if len(sizes) > 1 else f"window {sizes[0]}"
    if others is None or len(found) == 1:
        return Fact(window, fields)
    if others.then == "o" and "o" not in others.first and found[0] is None:
        return Fact(f"{window} from layer {len(others.first):,}", fields)
    pattern = others.first + others.then
    if others.window is None:  # the layers that differ have none
        pattern = pattern.translate(str.maketrans("o.", ".o"))
    return Fact(f"{window} in {pattern}", fields)


def _feed_forward(config: ModelConfig, stack: str) -> Iterator[tuple[str, Fact]]:
    feed_forward = (config.decoder_feed_forward if stack == "decoder" else None) or config.feed_forward
    field = _names("feed_forward", config.decoder_feed_forward, stack)
    width = f"{config.d_model:,} → {feed_forward.width:,} → {config.d_model:,}"
    yield "width", Fact(width, (*field("width"), "d_model"))
    yield "activation", Fact(feed_forward.activation, field("activation"))
    if feed_forward.gated:
        yield "gated", Fact("gated", field("gated", "limit", "up_offset"))
    yield "bias", Fact("bias" if feed_forward.bias else "no bias", field("bias"))
    if (experts := feed_forward.experts) is not None:
        fields = field("experts", "experts.count", "experts.used", "experts.shared")
        shared = f", {experts.shared:,} shared" if experts.shared else ""
        yield "router", Fact(f"router: {experts.used:,} of {experts.count:,} experts{shared}", fields)
    layer = next(filter(None, config.others(layers(config, stack))), None)
    if layer is not None and (other := layer.feed_forward) is not None:
        mixed = f", {other.experts.used:,} of {other.experts.count:,} experts" if other.experts else ""
        text = f"{OTHER} {config.d_model:,} → {other.width:,} → {config.d_model:,}{mixed}"
        names = ("", ".width", ".experts", ".experts.used", ".experts.count")
        yield "others", Fact(text, ("d_model", *_others(stack, *(f"feed_forward{name}" for name in names))))


def _others(stack: str, *names: str) -> tuple[str, ...]:
    """The fields by which some layers differ from the others."""
    return (f"{stack}_layers", "other_layers", *(f"other_layers.{name}" for name in ("first", "then", *names)))


def _position(config: ModelConfig, kinds: tuple[str, ...]) -> Fact:
    """Fact on positions: parameters of a kind of ours, the name of another."""
    position, fields, text = config.position, ["position.kind"], config.position.kind
    if position.relative_bias and "relative" in kinds:
        fields, text = ["position.relative_bias"], "relative"
    elif position.kind not in kinds:
        return Fact(text, tuple(fields))
    if text == "learned":
        text += f", {config.max_length:,}" + (f" + {position.offset:,}" if position.offset else "")
        fields += ["max_length", "position.offset"]
    elif text == "rotary":
        text += f", θ {position.theta:,.12g}"
        fields.append("position.theta")
        if position.rotary_fraction != 1.0:
            text += f", {position.rotary_fraction:.0%}"
            fields.append("position.rotary_fraction")
    elif text in ("relative", "disentangled"):
        text += f", {_many(position.buckets, 'bucket')}"
        fields.append("position.buckets")
    return Fact(text, tuple(fields))


def _reach(config: ModelConfig) -> Iterator[tuple[str, Fact]]:
    """Largest distance at which positions are told apart."""
    position = config.position
    if position.scaling is not None:
        fields = ("position.kind", "position.scaling", "position.scaling.kind", "position.scaling.factor")
        yield "reach", Fact(f"{position.scaling.kind} × {position.scaling.factor:g}", fields)
    elif position.has_buckets:
        fields = ("position.kind", "position.relative_bias", "position.max_distance")
        yield "reach", Fact(f"up to {position.max_distance:,} apart", fields)


def _acts(config: ModelConfig, *ways: str) -> bool:
    """Whether positions enter in one of these ways. A kind of somebody's own is taken to enter by the embeddings."""
    kind: Any = POSITIONS.get(config.position.kind)
    if kind is None:
        return "embed" in ways
    if config.position.kind == "learned" and not config.position.relative_bias:
        ways = tuple(way for way in ways if way != "bias")
    return any(getattr(kind, way) is not getattr(PositionalEncoding, way) for way in ways)


def _head(config: ModelConfig) -> Iterator[tuple[str, Fact]]:
    """The head, where there is one, and what the model gives."""
    head, width, kind = config.head, f"{config.d_model:,}", "head.kind"
    if head.kind != "none" or head.pooler is not None:
        yield "head", Fact(_HEADS[head.kind], (kind, "head.pooler"))
    if head.kind == "language_model":
        through, fields = "", (kind, "d_model", "vocab_size")
        if config.embedding.width and head.transform is not None:
            through, fields = f"{config.embedding.width:,} → ", (*fields, "embedding.width")
        yield "head.width", Fact(f"{width} → {through}{config.vocab_size:,}", fields)
        tied = "tied to the token embedding" if config.embedding.tied else "a matrix of its own"
        yield "head.tied", Fact(tied, (kind, "embedding.tied"))
        if head.transform is not None:
            first = f"{head.transform} and {_norm(config)} first"
            yield "head.transform", Fact(first, (kind, "head.transform", "norm.kind"))
        if head.bias != "none":
            yield "head.bias", Fact("bias" if head.bias == "learned" else "fixed bias", (kind, "head.bias"))
        if head.scaled:
            yield "head.scaled", Fact(f"÷ √{width}", (kind, "head.scaled", "d_model"))
        elif head.scale != 1.0:
            yield "head.scaled", Fact(f"× {head.scale:g}", (kind, "head.scale"))
    elif head.kind != "none":
        yield "head.width", Fact(f"{width} → {head.labels:,}", (kind, "d_model", "head.labels"))
        if head.label_bias:
            yield "head.bias", Fact("bias", (kind, "head.label_bias"))
        if head.transform is not None:
            rest = f" and {_norm(config)}" if head.transform_norm else ""
            fields = (kind, "head.transform", "head.transform_norm", *(["norm.kind"] if rest else []))
            yield "head.transform", Fact(f"dense, {head.transform}{rest} first", fields)
    if head.kind == "classification" or head.pooler is not None:
        pooled = "the mean of all tokens" if head.pooling == "mean" else f"of the {head.pooling} token"
        yield "head.pooling", Fact(pooled, (kind, "head.pooler", "head.pooling"))
    if head.pooler is not None:
        yield "head.pooler", Fact(f"dense and {head.pooler}", ("head.pooler",))
    yield "output", _output(config)


def _output(config: ModelConfig) -> Fact:
    """The tensor that the model gives."""
    each = "batch" if config.head.kind == "classification" else "batch × time"
    if config.head.kind == "none":
        return Fact(f"hidden states: {each} × {config.d_model:,}", ("head.kind", "d_model"))
    language = config.head.kind == "language_model"
    size = config.vocab_size if language else config.head.labels
    return Fact(f"logits: {each} × {size:,}", ("head.kind", "vocab_size" if language else "head.labels"))


def _names(part: str, own: object, stack: str) -> Callable[..., tuple[str, ...]]:
    """A function from fields of a block, which the decoder may have of its own, to their names in the config."""
    if stack == "decoder" and own is not None:
        return lambda *fields: (f"decoder_{part}", *(f"decoder_{part}.{field}" for field in fields))
    return lambda *fields: tuple(f"{part}.{field}" for field in fields)


def _norm(config: ModelConfig) -> str:
    return _NORMS.get(config.norm.kind, config.norm.kind)


def _many(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
