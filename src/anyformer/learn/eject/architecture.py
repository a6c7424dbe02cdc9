"""Values of the template of an architecture, from a config: its constants, its parts, and what is said of them."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

from anyformer.config import AttentionConfig, ModelConfig
from anyformer.learn.eject.parts import (
    ACTIVATIONS,
    Group,
    Stack,
    alike,
    attention_part,
    call,
    feed_forward_part,
    layers_name,
    reads_tokens,
    rotations,
    sharpness,
    stack_part,
    stacks_of,
    yarn_range,
)

NORMS = {"layer": "LayerNorm", "rms": "RMSNorm"}
POSITIONS = ("none", "sinusoidal", "learned", "rotary", "relative")
INITIALIZERS = {
    "normal": "N(0, std) for every matrix and table, zero for every bias.",
    "truncated_normal": "N(0, std), redrawn beyond two standard deviations, and zero for every bias (BERT).",
    "xavier": "Glorot-uniform matrices, token vectors from N(0, 1 / D), zero for every bias (Vaswani et al. 2017).",
    "t5": "N(0, 1 / inputs) for matrices; queries have the 1 / sqrt(K) that the scores leave out as well (T5).",
}
HASH_FACTOR, HASH_SHIFT = -7046029254386353131, 24
"""Constants of the hash of n-grams, see `anyformer.blocks.embedding`."""


def architecture(config: ModelConfig) -> dict[str, Any]:
    """The values of architecture.py.jinja."""
    stacks, cross = stacks_of(config), config.is_encoder_decoder
    # Two stacks of the same parts share their classes, and a class takes what one of its uses needs.
    attentions = {group: attention_part(config, group) for group in alike(stacks, lambda stack: stack.attention)}
    feed_forwards = {group: feed_forward_part(group) for group in alike(stacks, lambda stack: stack.feed_forward)}
    parts = [
        stack_part(
            config,
            stack,
            next(part for group, part in attentions.items() if stack in group.stacks),
            next(part for group, part in feed_forwards.items() if stack in group.stacks),
        )
        for stack in stacks
    ]
    layers = " + ".join(layers_name(stack, cross) for stack in stacks)
    return {
        "config": config,
        "constants": constants(config, stacks, list(attentions), list(feed_forwards)),
        "norm": NORMS[config.norm.kind],
        "qk_norm": any(stack.attention.qk_norm for stack in stacks),
        "position_table": _position_table(config),
        "rotations": rotations(config, list(attentions)),
        "sharpness": sharpness(config),
        "embedded": _embedded(config),
        "attentions": list(attentions.values()),
        "feed_forwards": list(feed_forwards.values()),
        "stacks": parts,
        "cross": cross,
        "two_texts": cross and config.head.kind != "classification",
        "reads_tokens": reads_tokens(config),
        **_head(config),
        "model_docstring": _model_docstring(config),
        "init_docstring": INITIALIZERS[config.init.kind],
        "drawn_wide": _drawn_wide(config),
        "depth": f"({layers})" if cross else layers,
    }


def _position_table(config: ModelConfig) -> str:
    rows = "MAX_LENGTH + POSITION_OFFSET" if config.position.offset else "MAX_LENGTH"
    table = f"{rows}, D_MODEL" + (", padding_idx=POSITION_OFFSET - 1" if config.position.skip_padding else "")
    return call("nn.ModuleDict", [f'{{"table": nn.Embedding({table})}}'], indent=8, before=16)


def _embedded(config: ModelConfig) -> str:
    """The modules of a stack's embedding; "" where there are none."""
    embedding = config.embedding
    modules = ['"ngrams": NgramEmbedding()'] if embedding.ngrams > 1 else []
    modules += ['"segments": nn.Embedding(SEGMENTS, D_MODEL)'] if embedding.segments else []
    modules += [f'"norm": {NORMS[config.norm.kind]}(D_MODEL)'] if embedding.norm else []
    return call("nn.ModuleDict", [f"{{{', '.join(modules)}}}"], indent=8, before=17) if modules else ""


def _head(config: ModelConfig) -> dict[str, Any]:
    head = config.head
    needs_class = head.transform is not None or head.bias != "none" or head.scaled
    parts = ["a transform first"] if head.transform else []
    parts += ["a bias for each token"] if head.bias != "none" else []
    parts += ["divided by sqrt(D)"] if head.scaled else []
    table = "the token table" if config.embedding.tied else "a matrix"
    return {
        "head_class": head.kind == "language_model" and needs_class,
        "head_docstring": f"Logits over the vocabulary by {table}: {', '.join(parts)}.",
        "transform": ACTIVATIONS.get(head.transform or ""),
        "pooler": ACTIVATIONS.get(head.pooler or ""),
    }


def _model_docstring(config: ModelConfig) -> str:
    outputs = {"language_model": "logits over the vocabulary", "none": "hidden states"}
    output = outputs.get(config.head.kind, "logits over labels")
    if config.is_encoder_decoder:
        return f"An encoder reads the source [B, S], a decoder writes tokens [B, T]: {output}."
    return f"{'A decoder' if config.decoder_layers else 'An encoder'} over tokens [B, T]: {output}."


def _drawn_wide(config: ModelConfig) -> str:
    """Names of the weights that T5 draws with the deviation of the config."""
    names = ["token_embedding.table.weight"]
    names += ["source_embedding.table.weight"] if config.source_vocab_size is not None else []
    names += ["head.projection.weight"] if config.head.kind == "language_model" and not config.embedding.tied else []
    return ", ".join(f'"{name}"' for name in names) + ("," if len(names) == 1 else "")


Constants = Iterator[tuple[str, float | None]]
"""Names and values; None: the file has no such constant."""


def constants(
    config: ModelConfig, stacks: Sequence[Stack], attentions: Sequence[Group], feed_forwards: Sequence[Group]
) -> list[tuple[str, str]]:
    """Names and values of the numbers that the code uses in Python's notation, sizes first."""
    named = [
        *_sizes(config, stacks, attentions, feed_forwards),
        *_positions(config, attentions),
        *_embeddings(config),
        *(pair for group in attentions for pair in _attention(group)),
        ("NORM_EPS", config.norm.eps),
        ("DROPOUT", config.dropout or None),
        ("EMBEDDING_DROPOUT", config.embedding.dropout or None),
        *((f"{group.prefix}ATTENTION_DROPOUT", group.attention.dropout or None) for group in attentions),
        *((f"{group.prefix}FEED_FORWARD_DROPOUT", group.feed_forward.dropout or None) for group in feed_forwards),
        *_labels(config),
        ("INIT_STD", config.init.std if config.init.kind != "xavier" else None),
    ]
    return [(name, literal(value)) for name, value in named if value is not None]


def literal(value: float) -> str:
    """A number as Python reads it back: the `repr` of one that is not finite is a name that no file has."""
    return repr(value) if math.isfinite(value) else f'float("{value}")'


def _sizes(
    config: ModelConfig, stacks: Sequence[Stack], attentions: Sequence[Group], feed_forwards: Sequence[Group]
) -> Constants:
    yield "VOCAB_SIZE", config.vocab_size
    yield "SOURCE_VOCAB_SIZE", config.source_vocab_size
    yield "D_MODEL", config.d_model
    yield "MAX_LENGTH", config.max_length
    for stack in stacks:
        yield layers_name(stack, config.is_encoder_decoder), stack.layers
    for group in attentions:
        attention = group.attention
        yield f"{group.prefix}HEADS", attention.heads
        yield f"{group.prefix}KV_HEADS", attention.kv_heads if attention.kv_heads != attention.heads else None
        yield f"{group.prefix}HEAD_DIM", _head_dim(config, attention)
    for group in feed_forwards:
        yield f"{group.prefix}WIDTH", group.feed_forward.width


def _head_dim(config: ModelConfig, attention: AttentionConfig) -> int:
    return attention.head_dim or config.d_model // attention.heads


def _positions(config: ModelConfig, attentions: Sequence[Group]) -> Constants:
    position = config.position
    match position.kind:
        case "learned":
            yield "POSITION_OFFSET", position.offset or None
        case "relative":
            yield "BUCKETS", position.buckets
            yield "MAX_DISTANCE", position.max_distance
        case "rotary":
            yield "THETA", position.theta
            yield from _scaling(config, attentions)
        case _:
            pass


def _scaling(config: ModelConfig, attentions: Sequence[Group]) -> Constants:
    scaling = config.position.scaling
    if scaling is None:
        return
    yield "ROPE_FACTOR", scaling.factor
    if scaling.kind == "llama3":
        yield "ORIGINAL_LENGTH", scaling.original_length
        yield "LOW_FREQUENCY", scaling.low_frequency
        yield "HIGH_FREQUENCY", scaling.high_frequency
    if scaling.kind == "yarn":
        for group in attentions:
            low, high = yarn_range(config, _head_dim(config, group.attention))
            yield f"{group.prefix}YARN_LOW", low
            yield f"{group.prefix}YARN_HIGH", high
        factor = sharpness(config)
        yield "ATTENTION_FACTOR", factor if factor != 1.0 else None


def _embeddings(config: ModelConfig) -> Constants:
    embedding = config.embedding
    if embedding.ngrams > 1:
        yield "NGRAMS", embedding.ngrams
        yield "NGRAM_ROWS", embedding.ngram_rows
        yield "HASH_FACTOR", HASH_FACTOR
        yield "HASH_SHIFT", HASH_SHIFT
    yield "SEGMENTS", embedding.segments or None
    yield "PADDING", embedding.padding
    if config.is_encoder_decoder and config.head.kind in ("language_model", "classification"):
        tokens = config.special_tokens
        starts = (tokens.decoder_start, tokens.bos, tokens.pad, 0)
        yield "DECODER_START", next(token for token in starts if token is not None)


def _attention(group: Group) -> Constants:
    attention, has_window = group.attention, any(stack.window is not None for stack in group.stacks)
    yield f"{group.prefix}SCALE", None if attention.scale is None else float(attention.scale)
    yield f"{group.prefix}WINDOW", attention.window if has_window else None
    yield f"{group.prefix}WINDOW_FROM", attention.window_from or None if has_window else None


def _labels(config: ModelConfig) -> Constants:
    if config.head.kind in ("classification", "token_classification"):
        yield "LABEL_COUNT", config.head.labels
        yield "HEAD_DROPOUT", config.head.dropout or None
