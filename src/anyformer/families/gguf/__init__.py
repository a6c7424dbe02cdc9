"""GGUF, the format of llama.cpp: its architectures, their metadata and tensor names, read in both directions.

base           what an architecture is
architectures  those of llama.cpp that can be read and written
scaling        scaled rotary positions
"""

from typing import Any

from anyformer.config import ModelConfig, SpecialTokens, diff
from anyformer.errors import UserError, nearest, quote
from anyformer.families import FAMILIES, canonical, to_huggingface
from anyformer.families.gguf import scaling
from anyformer.families.gguf.architectures import ARCHITECTURES
from anyformer.families.gguf.base import Architecture, Contents, layers
from anyformer.families.rows import Row, resolve

__all__ = ["ARCHITECTURES", "Architecture", "Contents", "architecture", "from_gguf", "rope_factors", "table", "to_gguf"]

rope_factors = scaling.factors


def architecture(name: str) -> Architecture:
    """The architecture of this name. Raises UserError for one that is not supported."""
    if name not in ARCHITECTURES:
        raise UserError(f"The GGUF architecture {quote(name)} is not supported ({nearest(name, ARCHITECTURES)}).")
    return ARCHITECTURES[name]


def from_gguf(contents: Contents) -> ModelConfig:
    """The model that a GGUF file describes. Raises UserError for what is not supported, missing or misshapen."""
    kind = architecture(contents.architecture)
    raw = kind.read(contents)
    family = FAMILIES[kind.model_types[0]]
    config = kind.adjust(family.read(raw, kind.head), contents)
    # Before anything is built: a number of layers costs nothing to write.
    for count, prefix in ((config.encoder_layers, "enc."), (config.decoder_layers, "dec.")):
        prefix = prefix if config.is_encoder_decoder else ""
        if count and count != (found := layers(contents, prefix)):
            raise UserError(f"The metadata says {count} layers, and there are {prefix}blk tensors of {found}.")
    return config


def to_gguf(config: ModelConfig) -> tuple[Architecture, dict[str, Any]]:
    """The architecture that can hold this model, and the metadata that describes it, without the tokenizer's.

    Raises:
        UserError: GGUF, or llama.cpp that computes by it, can't express the model; it names what stands in the way.
    """
    model_type = to_huggingface(config)[0].model_type
    kind = next((kind for kind in ARCHITECTURES.values() if model_type in kind.model_types), None)
    if kind is None:
        raise UserError(f"GGUF has no architecture for a model of type {quote(model_type)}.")
    if config.head.kind != kind.head:
        raise UserError(f"GGUF's {kind.name} architecture has no place for a head of kind {quote(config.head.kind)}.")
    metadata = kind.write(config, FAMILIES[kind.model_types[0]].write(config))
    back = from_gguf(_contents(config, kind, metadata))
    # LLaMA 3's scaling is its factors, which different lengths and frequencies can have in common.
    factors = rope_factors(config)
    same_factors = factors is not None and scaling.alike(rope_factors(back) or (), factors)
    for field, (computed, meant) in diff(_computed(back), _computed(config)).items():
        if not (same_factors and field.startswith("position.scaling.")):
            raise UserError(
                f"GGUF's {kind.name} architecture can't express {field} = {quote(meant)} (llama.cpp would compute with "
                f"{quote(computed)})."
            )
    return kind, metadata


def _computed(config: ModelConfig) -> ModelConfig:
    """The config that llama.cpp computes by: without training's settings, token ids, and synonyms."""
    pooling = {"kind": config.pooling.kind} if config.is_encoder_only else {}
    rates = {part: {"dropout": 0.0} for part in ("attention", "feed_forward", "embedding", "head")}
    return canonical(config).replace(dropout=0.0, special_tokens=SpecialTokens(), pooling=pooling, **rates)


def _contents(config: ModelConfig, kind: Architecture, metadata: dict[str, Any]) -> Contents:
    """Contents of a file of this model."""
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
    try:
        return resolve(kind.rows(config), ours)
    except UserError as error:
        raise UserError(str(error).replace("This model type", f"GGUF's {kind.name} architecture")) from error
