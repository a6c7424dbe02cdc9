"""GGUF, the format of llama.cpp: its architectures, their metadata and tensor names, read in both directions.

base     what an architecture is
scaling  stretched rotary positions
llama, gpt2, bert, t5    the architectures themselves
"""

from typing import Any

from anyformer.config import ModelConfig, diff
from anyformer.errors import UserError, nearest
from anyformer.families import FAMILIES, to_huggingface
from anyformer.families.gguf import bert, gpt2, llama, scaling, t5
from anyformer.families.gguf.base import Architecture, Contents, layers
from anyformer.families.rows import Row, resolve

ARCHITECTURES: dict[str, Architecture] = {
    architecture.name: architecture
    for architecture in (*llama.ARCHITECTURES, gpt2.ARCHITECTURE, bert.ARCHITECTURE, t5.ARCHITECTURE)
}

__all__ = ["ARCHITECTURES", "Architecture", "Contents", "architecture", "from_gguf", "rope_factors", "table", "to_gguf"]

rope_factors = scaling.factors


def architecture(name: str) -> Architecture:
    """The architecture of this name. Raises UserError for one that is not supported."""
    if name not in ARCHITECTURES:
        raise UserError(f"The GGUF architecture {name!r} is not supported ({nearest(name, ARCHITECTURES)}).")
    return ARCHITECTURES[name]


def from_gguf(contents: Contents) -> ModelConfig:
    """The model that a GGUF file describes. Raises UserError for what is not supported, missing or misshapen."""
    kind = architecture(contents.architecture)
    raw = kind.read(contents)
    family = FAMILIES[kind.model_types[0]]
    # Before anything is built: a number in a header costs nothing to write.
    for key, prefix in (("block_count", "enc."), ("decoder_block_count", "dec."), ("block_count", "")):
        said, found = contents.get(key), layers(contents, prefix)
        if found and said is not None and said != found:
            raise UserError(f"The key {kind.name}.{key} says {said}, but the file has tensors of {found} layers.")
    return kind.adjust(family.read(raw, kind.head), contents)


def to_gguf(config: ModelConfig) -> tuple[Architecture, dict[str, Any]]:
    """The architecture that can hold this model, and the metadata that describes it, without the tokenizer's.

    Raises:
        UserError: GGUF, or llama.cpp that computes by it, can't express the model; it names what stands in the way.
    """
    model_type = to_huggingface(config)[0].model_type
    kind = next((kind for kind in ARCHITECTURES.values() if model_type in kind.model_types), None)
    if kind is None:
        raise UserError(f"GGUF has no architecture for a model of type {model_type!r}.")
    if config.head.kind != kind.head:
        raise UserError(f"GGUF's {kind.name} architecture has no place for a head of kind {config.head.kind!r}.")
    metadata = kind.write(config, FAMILIES[kind.model_types[0]].write(config))
    for field, (said, meant) in diff(from_gguf(_contents(config, kind, metadata)), config).items():
        if (
            field not in _UNSAID
            and field.rsplit(".", 1)[-1] != "dropout"
            and not _by_default(config, field, said, meant)
        ):
            raise UserError(
                f"GGUF's {kind.name} architecture can't express {field} = {meant!r} (llama.cpp would compute with "
                f"{said!r})."
            )
    return kind, metadata


_UNSAID = {"head.dropout", "pooling.normalise", "pooling.max_tokens", "embedding.padding", "tokens.decoder_start"}
"""Fields that change nothing in what llama.cpp computes, or that the tokenizer's metadata says."""


def _by_default(config: ModelConfig, field: str, said: Any, meant: Any) -> bool:
    """Whether the field is one of training or tokens, or what the config leaves to a rule."""
    attention = config.attention
    rules = {
        "attention.kv_heads": attention.heads,
        "attention.head_dim": config.d_model // attention.heads,
    }
    return field.startswith(("init.", "tokens.")) or {said, meant} == {None, rules.get(field)}


def _contents(config: ModelConfig, kind: Architecture, metadata: dict[str, Any]) -> Contents:
    """What a file of this model would say."""
    from anyformer.model import skeleton

    state = skeleton(config).state_dict()
    shapes = {
        theirs: tuple(line.operation.write([state[name] for name in line.ours]).shape)
        for theirs, line in table(kind, config, state).items()
        if not line.alias
    }
    tied = config.head.kind != "language_model" or config.embedding.tied
    output = "own" if not tied else "scaled" if config.head.scaled else "same"
    return Contents(metadata, shapes, output, rope_factors(config))


def table(kind: Architecture, config: ModelConfig, ours: Any) -> dict[str, Row]:
    """The row for every tensor name of a model with these weights. Raises UserError for one that has no place."""
    return resolve(kind.rows(config), ours)
