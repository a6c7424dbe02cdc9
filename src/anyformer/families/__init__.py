"""Model families: what Hugging Face calls them, and the sizes that were published.

`FAMILIES` maps each `model_type` to its `Family`, `PRESETS` each preset to its config, `ALIASES` a family's short name
to the preset meant by it, its first.
"""

from collections import UserDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import fields, is_dataclass, replace
from typing import Any

from typing_extensions import override

from anyformer.config import HeadConfig, HeadKind, InitConfig, ModelConfig, PoolingConfig, ProblemType
from anyformer.errors import UserError, cut, nearest, quote
from anyformer.families import (
    bart,
    bert,
    deberta,
    deepseek,
    gemma,
    gpt2,
    gpt_oss,
    llama,
    mixtral,
    modernbert,
    nanochat,
    olmo,
    own,
    parallel,
    phi3,
    t5,
)
from anyformer.families.base import Family, Raw, complete, supported, write_labels

FAMILIES: dict[str, Family] = {
    family.model_type: family
    for family in (
        *gpt2.FAMILIES,
        *llama.FAMILIES,
        *gemma.FAMILIES,
        *olmo.FAMILIES,
        llama.SMOLLM3,
        *mixtral.FAMILIES,
        *deepseek.FAMILIES,
        gpt_oss.FAMILY,
        parallel.GPT_NEOX,
        parallel.PHI,
        phi3.FAMILY,
        llama.GRANITE,
        parallel.COHERE,
        parallel.FALCON,
        nanochat.FAMILY,
        *bert.FAMILIES,
        deberta.FAMILY,
        modernbert.FAMILY,
        *t5.FAMILIES,
        *bart.FAMILIES,
        own.FAMILY,
    )
}

_NAMED = {name: family for name, family in FAMILIES.items() if family is not own.FAMILY}
"""Families of Hugging Face's."""

_PUBLISHED = {name: family for family in FAMILIES.values() for name in family.published}

_ABOUT_NO_MODEL = {
    *("_name_or_path", "architectures", "auto_map", "dtype", "model_type", "torch_dtype", "transformers_version"),
    *("_attn_implementation", "attn_implementation", "gradient_checkpointing", "pretraining_tp", "use_cache"),
    *("chunk_size_feed_forward", "output_attentions", "output_hidden_states", "return_dict", "quantization_config"),
    *("id2label", "is_encoder_decoder", "label2id", "language", "problem_type", "task_specific_params"),
    *("tokenizer_class", "forced_bos_token_id", "forced_eos_token_id"),
}
"""Fields of any config.json that no model is computed by."""
_FEWEST, _LISTED = 5, 4
"""Fields in common without which nothing is near, and those that a sentence has room for."""


class _Presets(Mapping[str, ModelConfig]):
    """Configs that are made when one of their family is asked for: all take half a second."""

    @override
    def __getitem__(self, name: str) -> ModelConfig:
        return _PUBLISHED[name].presets[name]

    @override
    def __iter__(self) -> Iterator[str]:
        return iter(_PUBLISHED)

    @override
    def __len__(self) -> int:
        return len(_PUBLISHED)


PRESETS = _Presets()

ALIASES = {
    **{
        name: next(iter(family.published))
        for name, family in FAMILIES.items()
        if family.published and name not in (*PRESETS, own.METHOD)
    },
    "transformer": "transformer-base",
    "gemma3": "gemma-3-270m",
}


def preset(name: str, **changes: Any) -> ModelConfig:
    """The config of a published model, with some fields changed.

    ``preset("gpt2", decoder_layers=4, attention={"heads": 4})``

    Raises:
        UserError: an unknown preset or field; the message names the nearest valid one.
    """
    full_name = ALIASES.get(name, name)
    if full_name not in PRESETS:
        raise UserError(f"There is no preset {quote(name)} ({nearest(name, [*PRESETS, *ALIASES])}).")
    return PRESETS[full_name].replace(**changes)


def rates_of_dropout(config: ModelConfig, rate: float) -> list[str]:
    """The rates of dropout that a model can have, by dotted name: above 0 those alone that its family's files hold."""
    family = FAMILIES.get(config.model_type, own.FAMILY)
    held = {"dropout", *family.json_names}

    def names(part: Any, prefix: str = "") -> Iterator[str]:
        for each in fields(part):
            if is_dataclass(value := getattr(part, each.name)):
                yield from names(value, f"{prefix}{each.name}.")
            elif each.name == "dropout":
                yield f"{prefix}dropout"

    def is_held(name: str) -> bool:
        return name.removeprefix("other_layers.").removeprefix("decoder_") in held

    return [name for name in names(config) if rate == 0 or family is own.FAMILY or is_held(name)]


def from_huggingface(raw: Raw) -> ModelConfig:
    """The model that a config.json describes. Raises UserError for what is not supported, naming it, or misshapen."""
    try:
        raw = own.unquantized_config_json(raw)
        name = raw.get("model_type")
        if name is None:
            raise UserError("config.json has no model_type, so it does not say which family the model is of.")
        if name not in FAMILIES and (error := _unsupported(raw)):
            raise error
        family = supported(FAMILIES, name, "The model type")
        return family.read(raw, family.head(raw))
    except UserError:
        raise
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise UserError(f"config.json has a field that is missing or misshapen: {cut(str(error))}.") from error


def _unsupported(raw: Raw) -> UserError | None:
    """The error for a config.json of a model type that there is no family of; None where none of them is near.

    The nearest is told not by its name, but by what the config.json says: each family reads it, and the one that knows
    most of its fields is meant.
    """
    said = [name for name, value in raw.items() if value and name not in _ABOUT_NO_MODEL]
    known = {name: _known(raw, family) for name, family in _NAMED.items()}
    name = max(known, key=lambda name: _nearness(raw, said, _NAMED[name], known[name]))
    lacking = [field for field in said if field not in known[name]]
    if len(said) - len(lacking) < _FEWEST:
        return None
    listed = ", ".join(map(quote, lacking[:_LISTED]))
    more = f" and {len(lacking) - _LISTED} more" if len(lacking) > _LISTED else ""
    unknown = f"which does not know {listed}{more}"
    lacks = unknown if lacking else "which knows all its fields: what differs is in its code"
    kind = quote(raw.get("model_type"))
    return UserError(f"The model type {kind} is not supported; the nearest here is {name!r}, {lacks}.")


class _Asked(UserDict[str, Any]):
    """A config.json, and the names of the fields that were asked for."""

    def __init__(self, raw: Raw) -> None:
        super().__init__(raw)
        self.names = set[str]()

    @override
    def __getitem__(self, name: str) -> Any:
        self.names.add(name)
        return super().__getitem__(name)


def _known(raw: Raw, family: Family) -> set[str]:
    """The fields that a family reads from this config.json, as far as it gets."""
    asked = _Asked(raw)
    with suppress(UserError, LookupError, TypeError, ValueError, AttributeError, ArithmeticError):
        family.read(asked, next(iter(family.architectures.values())))
    return asked.names | family.fields.keys()


def _nearness(raw: Raw, said: list[str], family: Family, known: set[str]) -> tuple[int, int]:
    """How many of its fields a family knows, two more for its kind of class; then how few of the family's it lacks."""
    ends = {_end(name) for name in family.architectures}
    architectures: Any = raw.get("architectures")
    named = isinstance(architectures, list) and architectures and _end(str(architectures[0])) in ends
    return sum(name in known for name in said) + 2 * bool(named), -len(family.fields.keys() - raw.keys())


def _end(architecture: str) -> str:
    """The part of a class name that says its task: ForCausalLM."""
    return cut(architecture).partition("For")[2]


def to_huggingface(config: ModelConfig) -> tuple[Family, dict[str, Any]]:
    """The family whose files can hold this model, and its config.json.

    The config's own `model_type` is tried first, then every other; what no class of Hugging Face's can express is
    written as our own type. A family can express a config if reading back what it wrote gives the same config.
    """
    preferred = FAMILIES.get(config.model_type, own.FAMILY)
    for family in (preferred, *FAMILIES.values()):
        for name in family.architectures_of(config.head.kind):
            written = _try(family, name, config)
            if written is not None:
                return family, written
    raise AssertionError("our own model type can express every config")


def with_head(
    config: ModelConfig, kind: HeadKind, labels: Sequence[str] | int = 2, problem_type: ProblemType | None = None
) -> ModelConfig:
    """The config with another head, made as Hugging Face's class of its family makes it.

    Args:
        kind: none, language_model, classification (one answer a text) or token_classification (one a token). A language
            model keeps the head that it has.
        labels: Of a classifier: the names, or how many.

    Raises:
        UserError: the family has no such class, or the labels don't fit.
    """
    if kind == config.head.kind == "language_model":
        return config
    if kind != "none":
        config = config.replace(pooling={"dense": ()})
    names, count = ((), labels) if isinstance(labels, int) else (tuple(labels), len(labels))
    head = HeadConfig(kind=kind, labels=count, label_names=names, problem_type=problem_type)
    family, raw = to_huggingface(config)
    if family is own.FAMILY:
        return config.replace(head=replace(head, pooling="first" if config.is_encoder_only else "last"))
    config = replace(config, head=replace(head, pooling="last"))
    named = family.architectures_of(kind)
    if not named:
        raise UserError(f"Model type {family.model_type!r} has no architecture with the head {kind!r}.")
    read = family.read({**raw, "architectures": named[:1], **write_labels(head)}, kind)
    if read.decoder_layers == 0:
        config = config.replace(decoder_layers=0, decoder_attention=None, decoder_feed_forward=None)
    return replace(config, head=read.head)


def _try(family: Family, architecture: str, config: ModelConfig) -> dict[str, Any] | None:
    try:
        header = {"model_type": family.model_type, "architectures": [architecture]}
        written = {**header, **family.write(config)}
        back = family.read(written, config.head.kind)
    except UserError:
        return None
    if config.head.kind == "none" and config.head.pooler is None:
        # A bare BERT may come without its pooler, which no config.json says: the file has the last word.
        back = back.replace(head={"pooler": None})
    return written if canonical(back) == canonical(config) else None


def canonical(config: ModelConfig) -> ModelConfig:
    """The config without what files of a family need not say, and with every default written out."""
    if (others := config.other_layers) is not None:
        layers = max(config.encoder_layers, config.decoder_layers)
        first = "".join(".o"[layer in others] for layer in range(layers))
        config = replace(config, other_layers=replace(others, first=first, then="o"))
    return replace(
        complete(config),
        # Which row learns nothing from being read matters to training alone, unless positions skip that token.
        embedding=config.embedding if config.position.skip_padding else replace(config.embedding, padding=None),
        init=InitConfig(),
        pooling=PoolingConfig(),
        model_type="",
    )
