"""The constants at the head of a file: a name for each number of the config that the code uses."""

import math
from collections.abc import Iterator, Sequence

from anyformer.config import AttentionConfig, ModelConfig
from anyformer.learn.eject.stacks import Group, Stack, layers_name, sharpness, yarn_range

HASH_FACTOR, HASH_SHIFT = -7046029254386353131, 24
"""Constants of the hash of n-grams, see `anyformer.blocks.embedding`."""


def constants(
    config: ModelConfig, stacks: Sequence[Stack], attentions: Sequence[Group], feed_forwards: Sequence[Group]
) -> list[tuple[str, str]]:
    """Names and values in Python's notation, sizes first."""
    named = [
        *_sizes(config, stacks, attentions, feed_forwards),
        *_positions(config, attentions),
        *_embeddings(config),
        *(pair for group in attentions for pair in _attention(group)),
        ("NORM_EPS", config.norm.eps),
        *_rates(config, attentions, feed_forwards),
        *_head(config),
        ("INIT_STD", config.init.std if config.init.kind != "xavier" else None),
    ]
    return [(name, literal(value)) for name, value in named if value is not None]


def literal(value: float) -> str:
    """A number as Python reads it back: the `repr` of one that is not finite is a name that no file has."""
    return repr(value) if math.isfinite(value) else f'float("{value}")'


Constants = Iterator[tuple[str, float | None]]
"""Names and values; None: the file has no such constant."""


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
        attention = group.stacks[0].attention
        yield f"{group.prefix}HEADS", attention.heads
        yield f"{group.prefix}KV_HEADS", attention.kv_heads if attention.kv_heads != attention.heads else None
        yield f"{group.prefix}HEAD_DIM", head_dim(config, attention)
    for group in feed_forwards:
        yield f"{group.prefix}WIDTH", group.stacks[0].feed_forward.width


def head_dim(config: ModelConfig, attention: AttentionConfig) -> int:
    """Numbers of a head."""
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
            low, high = yarn_range(config, head_dim(config, group.stacks[0].attention))
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
        yield "DECODER_START", decoder_start(config)


def decoder_start(config: ModelConfig) -> int:
    """The first token that a decoder reads; 0 where the config does not say."""
    tokens = config.special_tokens
    return next((token for token in (tokens.decoder_start, tokens.bos, tokens.pad) if token is not None), 0)


def _attention(group: Group) -> Constants:
    attention = group.stacks[0].attention
    windows = [stack for stack in group.stacks if stack.window is not None]
    yield f"{group.prefix}SCALE", None if attention.scale is None else float(attention.scale)
    yield f"{group.prefix}WINDOW", attention.window if windows else None
    yield f"{group.prefix}WINDOW_FROM", attention.window_from or None if windows else None


def _rates(config: ModelConfig, attentions: Sequence[Group], feed_forwards: Sequence[Group]) -> Constants:
    yield "DROPOUT", config.dropout or None
    yield "EMBEDDING_DROPOUT", config.embedding.dropout or None
    for group in attentions:
        yield f"{group.prefix}ATTENTION_DROPOUT", group.stacks[0].attention.dropout or None
    for group in feed_forwards:
        yield f"{group.prefix}FEED_FORWARD_DROPOUT", group.stacks[0].feed_forward.dropout or None


def _head(config: ModelConfig) -> Constants:
    if config.head.kind in ("classification", "token_classification"):
        yield "LABEL_COUNT", config.head.labels
        yield "HEAD_DROPOUT", config.head.dropout or None
