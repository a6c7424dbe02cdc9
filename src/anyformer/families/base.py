"""The record of a family: presets, a two-way translation of its config.json, and one table of weight names."""

import re
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, is_dataclass
from operator import attrgetter
from typing import Any, TypeVar, cast, get_type_hints

from anyformer.config import HeadConfig, HeadKind, ModelConfig
from anyformer.errors import UserError, cut, nearest, quote
from anyformer.families.rows import Row, resolve, row

Raw = Mapping[str, Any]
"""A config.json as it was read."""
T = TypeVar("T")

ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "relu": "relu",
    "relu2": "relu_squared",
    "silu": "silu",
    "swish": "silu",
}
"""Hugging Face's names and ours; the first of several is the one that is written."""


@dataclass(frozen=True)
class Family:
    """One `model_type` of Hugging Face's.

    A reader may leave out what it can't express, for `translate` checks that every config survives the way there
    and back.
    """

    model_type: str
    architectures: Mapping[str, HeadKind]
    """Class names in config.json and their heads; the first is meant where config.json names none."""
    read: Callable[[Raw, HeadKind], ModelConfig]
    """From a config.json and the head that its architecture has."""
    write: Callable[[ModelConfig], dict[str, Any]]
    """The fields of config.json that describe the architecture."""
    rows: Sequence[Row]
    prefix: str = ""
    """Before the body's names in files of models with a head."""
    ignored: Sequence[str] = ()
    """Regular expressions of names on disk that can be left aside: buffers, and heads nobody asked for."""
    presets: Mapping[str, ModelConfig] = field(default_factory=dict[str, ModelConfig])
    renamed: Sequence[tuple[str, str]] = ()
    """Regular expressions of names on disk that older files have, and what each is called now."""
    ties_missing_head: bool = False
    """A head that the file lacks is the token table, whatever config.json says."""

    def table(self, ours: Collection[str]) -> dict[str, Row]:
        """The row for every name on disk of a model with these weights; a family without rows keeps the names.

        Raises UserError for a weight that the family's format has no place for.
        """
        return resolve(self.rows, ours) if self.rows else {name: row(name, name) for name in ours}

    def stored_names(self, ours: str) -> list[str]:
        """The names on disk that one of our weights can have, with and without the prefix; aliases are none."""
        names = [line.theirs for line in self.rows if ours in line.ours and not line.alias] if self.rows else [ours]
        return [form for name in names for form in (name, name.removeprefix(self.prefix))]

    def current_name(self, name: str) -> str:
        """The name of a weight in the table, from one on disk that may be older."""
        for pattern, replacement in self.renamed:
            name = re.sub(pattern, replacement, name)
        return name

    def head(self, raw: Raw) -> HeadKind:
        """The head that config.json's `architectures` ask for. Raises UserError for one that is not known."""
        named = raw.get("architectures") or [next(iter(self.architectures))]
        if named[0] not in self.architectures:
            raise UserError(
                f"config.json: the architecture {cut(str(named[0]))} is not supported for model type "
                f"{self.model_type!r} ({nearest(named[0], self.architectures)})."
            )
        return self.architectures[named[0]]

    def architecture(self, config: ModelConfig) -> str:
        """The class name for this config's head."""
        for name, kind in self.architectures.items():
            if kind == config.head.kind:
                return name
        raise UserError(f"Model type {self.model_type!r} has no architecture with the head {config.head.kind!r}.")


def _activation(name: str) -> str:
    if name not in ACTIVATIONS:
        raise UserError(f"config.json: the activation {quote(name)} is not supported ({nearest(name, ACTIVATIONS)}).")
    return ACTIVATIONS[name]


def _their_activation(name: str) -> str:
    for theirs, ours in ACTIVATIONS.items():
        if ours == name:
            return theirs
    raise UserError(f"Hugging Face has no name for the activation {quote(name)}.")


Fields = Mapping[str, tuple[str, Any]]
"""Field of config.json -> the fields of ModelConfig with its value (dotted names, separated by spaces), and what it is
where config.json leaves it out."""


def read_fields(raw: Raw, fields: Fields, tokens: Raw) -> dict[str, dict[str, Any]]:
    """Values that a table finds in a config.json: part of ModelConfig ("" for itself) -> field -> value.

    Special tokens, which all families write alike, are among them; `tokens` has the family's defaults.
    """
    values: defaultdict[str, dict[str, Any]] = defaultdict(dict, special_tokens=_special_tokens(raw, tokens))
    for theirs, (ours, default) in fields.items():
        value = _value(raw, theirs, default)
        for name in ours.split():
            part, _, field_name = name.rpartition(".")
            values[part][field_name] = _activation(value) if field_name == "activation" else value
    return values


def _value(raw: Raw, name: str, default: Any) -> Any:
    """The value of a field. Null stands for false, as in transformers."""
    value = raw.get(name, default)
    return False if value is None and isinstance(default, bool) else value


def write_fields(config: ModelConfig, fields: Fields) -> dict[str, Any]:
    """The inverse of `read_fields`."""
    tokens = config.special_tokens
    written: dict[str, Any] = {}
    for theirs, (ours, _) in fields.items():
        value = attrgetter(ours.split()[0])(config)
        written[theirs] = _their_activation(value) if ours.endswith(".activation") else value
    return {
        **written,
        "bos_token_id": tokens.bos,
        "eos_token_id": None if not tokens.eos else tokens.eos[0] if len(tokens.eos) == 1 else list(tokens.eos),
        "pad_token_id": tokens.pad,
        **({} if tokens.decoder_start is None else {"decoder_start_token_id": tokens.decoder_start}),
    }


CLASSIFIERS = ("classification", "token_classification")
"""Kinds of heads with labels."""


def read_labels(raw: Raw, kind: HeadKind) -> dict[str, Any]:
    """The fields of HeadConfig that say what a classifier's labels are; none for another kind of head.

    Raises UserError for names that do not belong to the labels 0, 1, 2 ...
    """
    if kind not in CLASSIFIERS:
        return {}
    given: Mapping[Any, Any] = raw.get("id2label") or {}
    named = {str(index): str(name) for index, name in given.items()}
    labels: int = len(named) or raw.get("num_labels") or 2
    for index in map(str, range(len(named))):
        if index not in named:
            raise UserError(f"config.json: id2label has {len(named)} names, and none for the label {index}.")
    names = tuple(named[str(index)] for index in range(len(named)))
    return {
        "labels": labels,
        "label_names": () if names == _numbered(labels) else names,
        "problem_type": raw.get("problem_type") if kind == "classification" else None,
    }


def write_labels(head: HeadConfig) -> dict[str, Any]:
    """The inverse of `read_labels`."""
    if head.kind not in CLASSIFIERS:
        return {}
    names = head.label_names or _numbered(head.labels)
    return {
        "id2label": {str(index): name for index, name in enumerate(names)},
        "label2id": {name: index for index, name in enumerate(names)},
        "problem_type": head.problem_type,
    }


def _numbered(labels: int) -> tuple[str, ...]:
    return tuple(f"LABEL_{index}" for index in range(labels))


def read_decoder_head(raw: Raw, kind: HeadKind) -> dict[str, Any]:
    """The fields of HeadConfig of a decoder (GenericFor...Classification in transformers' modeling_layers.py)."""
    head = {"kind": kind, **read_labels(raw, kind)}
    if kind == "classification":
        return {**head, "pooling": "last", "label_bias": False}
    if kind == "token_classification":
        refuse(raw, token_classification_bias=False)
        rates = (raw.get(name) for name in ("classifier_dropout", "hidden_dropout"))
        return {**head, "dropout": next((rate for rate in rates if rate is not None), 0.1)}
    return head


def write_decoder_head(head: HeadConfig) -> dict[str, Any]:
    """The inverse of `read_decoder_head`."""
    dropout = {"classifier_dropout": head.dropout} if head.kind == "token_classification" else {}
    return {**write_labels(head), **dropout}


def read_seq2seq_head(raw: Raw, kind: HeadKind) -> dict[str, Any]:
    """The fields of HeadConfig of BART's and T5's classifiers (transformers' BartClassificationHead)."""
    if kind not in CLASSIFIERS:
        return {"kind": kind}
    pooler = {"pooling": "last", "pooler": "tanh"} if kind == "classification" else {}
    return {"kind": kind, **read_labels(raw, kind), **pooler, "dropout": raw.get("classifier_dropout", 0.0)}


def write_seq2seq_head(head: HeadConfig) -> dict[str, Any]:
    """The inverse of `read_seq2seq_head`."""
    return {**write_labels(head), **({"classifier_dropout": head.dropout} if head.kind in CLASSIFIERS else {})}


_PARTS: dict[str, Any] = {name: kind for name, kind in get_type_hints(ModelConfig).items() if is_dataclass(kind)}


def make_config(given: Mapping[str, Mapping[str, Any]], model_type: str, **more: Any) -> ModelConfig:
    """The config with the fields that `read_fields` found, and more: a dict for each part, or fields of its own."""
    parts = {name: kind(**{**more.pop(name, {}), **given.get(name, {})}) for name, kind in _PARTS.items()}
    return ModelConfig(**given[""], **parts, **more, model_type=model_type)


def refuse(raw: Raw, **unsupported: Any) -> None:
    """Raise UserError where config.json has a switch on that no model here can follow: refuse(raw, is_decoder=True)."""
    for name, value in unsupported.items():
        if raw.get(name) == value:
            kind = quote(raw.get("model_type"))
            raise UserError(f"config.json: {name} = {value} is not supported for model type {kind}.")


def none_if_default(value: T, default: object) -> T | None:
    """The value; None where it equals the default, so that the default follows when other fields are changed."""
    return None if value == default else value


def _special_tokens(raw: Raw, defaults: Raw) -> dict[str, Any]:
    names = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id")
    bos, eos, pad, start = (raw.get(name, defaults.get(name)) for name in names)
    ends = () if eos is None else tuple(cast("Sequence[int]", eos)) if isinstance(eos, list | tuple) else (eos,)
    return {"bos": bos, "eos": ends, "pad": pad, "decoder_start": start}
