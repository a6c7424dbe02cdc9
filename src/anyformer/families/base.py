"""The record of a family: a two-way table of its config.json, a table of weight names, and the published sizes."""

import re
from collections import ChainMap
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, reduce
from typing import Any, TypeVar, cast

from anyformer.config import AttentionConfig, HeadConfig, HeadKind, ModelConfig, check_layers
from anyformer.errors import UserError, nearest, quote
from anyformer.families.rows import Row, resolve, row
from anyformer.schema import make

Raw = Mapping[str, Any]
"""A config.json as it was read."""
Values = dict[str, Any]
"""Fields of ModelConfig by dotted name."""
Fields = Mapping[str, tuple[str, Any]]
"""Field of config.json -> the fields of ModelConfig with its value (dotted names, separated by spaces), and its value
where config.json leaves it out."""
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
    "quick_gelu": "quick_gelu",
}
"""Hugging Face's names and ours; the first of several is the one that is written."""
BUFFERS = r"(.*\.)?rotary_emb\.inv_freq"
"""A regular expression of names that files of older versions have in all families: what is computed anew."""
CLASSIFIERS = ("classification", "token_classification")
"""Kinds of heads with labels."""


_HEADS: dict[str, HeadKind] = {
    "Model": "none",
    "ForSequenceClassification": "classification",
    "ForTokenClassification": "token_classification",
}


def classes(name: str, language_model: str, others: Sequence[str] = tuple(_HEADS)) -> dict[str, HeadKind]:
    """Hugging Face's classes of a family and their heads: ``classes("Bert", "ForMaskedLM")``."""
    return {f"{name}{end}": _HEADS.get(end, "language_model") for end in (language_model, *others)}


def sizes(fields: str) -> Callable[..., dict[str, Any]]:
    """A writer of presets: the numbers of these fields of config.json, in order, and others by name."""
    return lambda *numbers, **others: {**dict(zip(fields.split(), numbers, strict=True)), **others}


SIZES = sizes("hidden_size num_hidden_layers num_attention_heads intermediate_size")
"""The writer for those of most families."""
GROUPED_SIZES = sizes("hidden_size num_hidden_layers num_attention_heads num_key_value_heads intermediate_size")
"""The writer for those of families with key/value heads."""


def fields_of(*tables: Fields, without: Collection[str] = (), **defaults: Any) -> Fields:
    """The table of a family whose fields are those of others: all of theirs but some, and with other defaults."""
    fields = {name: field for table in tables for name, field in table.items() if name not in without}
    return fields | {name: (fields[name][0], default) for name, default in defaults.items()}


def special_tokens(
    *, bos: int | None = None, eos: int | None = None, pad: int | None = None, decoder_start: int | None = None
) -> Fields:
    """The fields of special tokens, which all families write alike, with a family's defaults."""
    return {
        "bos_token_id": ("special_tokens.bos", bos),
        "eos_token_id": ("special_tokens.eos", eos),
        "pad_token_id": ("special_tokens.pad embedding.padding", pad),
        "decoder_start_token_id": ("special_tokens.decoder_start", decoder_start),
    }


def plain_head(raw: Raw, kind: HeadKind) -> Values:
    """A head and its labels, if it is a classifier.

    Raises UserError for names that do not belong to the labels 0, 1, 2 ...
    """
    if kind not in CLASSIFIERS:
        return {"head.kind": kind}
    id2label: Mapping[Any, Any] = raw.get("id2label") or {}
    by_index = {str(index): str(name) for index, name in id2label.items()}
    labels: int = len(by_index) or raw.get("num_labels") or 2
    for index in map(str, range(len(by_index))):
        if index not in by_index:
            raise UserError(f"config.json: id2label has {len(by_index)} names, and none for the label {index}.")
    names = tuple(by_index[str(index)] for index in range(len(by_index)))
    return {
        "head.kind": kind,
        "head.labels": labels,
        "head.label_names": () if names == HeadConfig(labels=labels).names else names,
        "head.problem_type": raw.get("problem_type") if kind == "classification" else None,
    }


def write_labels(head: HeadConfig) -> dict[str, Any]:
    """The fields of config.json that `plain_head` reads."""
    if head.kind not in CLASSIFIERS:
        return {}
    return {
        "id2label": {str(index): name for index, name in enumerate(head.names)},
        "label2id": {name: index for index, name in enumerate(head.names)},
        "problem_type": head.problem_type,
    }


def decoder_head(raw: Raw, kind: HeadKind, dropout: float | None = None) -> Values:
    """The head of a decoder (GenericFor...Classification in transformers' modeling_layers.py).

    `dropout` is the rate of a family whose config.json has one by default.
    """
    values = plain_head(raw, kind)
    if kind == "classification":
        values |= {"head.pooling": "last", "head.label_bias": False}
    elif kind == "token_classification":
        refuse(raw, token_classification_bias=False)
        rates = (raw.get("classifier_dropout", dropout), raw.get("hidden_dropout"))
        values["head.dropout"] = next((rate for rate in rates if rate is not None), 0.1)
    return values


def seq2seq_head(raw: Raw, kind: HeadKind) -> Values:
    """The head of an encoder-decoder such as BART and T5 (transformers' BartClassificationHead)."""
    values = plain_head(raw, kind)
    if kind == "classification":
        values |= {"head.pooling": "last", "head.pooler": "tanh"}
    return values | ({"head.dropout": raw.get("classifier_dropout", 0.0)} if kind in CLASSIFIERS else {})


def write_classifier(head: HeadConfig) -> dict[str, Any]:
    """The fields of config.json that `decoder_head` and `seq2seq_head` read."""
    has_dropout = head.kind in CLASSIFIERS and head.label_bias
    return {**write_labels(head), **({"classifier_dropout": head.dropout} if has_dropout else {})}


@dataclass(frozen=True)
class Family:
    """One `model_type` of Hugging Face's.

    A reader may leave out what it can't express: `to_huggingface` checks that every config survives the way there and
    back.
    """

    model_type: str
    architectures: Mapping[str, HeadKind] = field(default_factory=dict[str, HeadKind])
    """Class names in config.json and their heads; the first is meant where config.json names none."""
    fields: Fields = field(default_factory=dict[str, tuple[str, Any]])
    """The table of config.json's fields, read in both directions."""
    constants: Raw = field(default_factory=dict[str, Any])
    """Fields of ModelConfig that every model of the family has and that are not its defaults, as for `replace`."""
    refused: Raw = field(default_factory=dict[str, Any])
    """Switches of config.json that no model here can follow."""
    derived: Callable[[Raw, Values, HeadKind], Values] = lambda raw, values, kind: {}
    """Fields of ModelConfig that take more than the table, from config.json, the fields so far and the head."""
    written: Callable[[ModelConfig], dict[str, Any]] = lambda config: {}
    """Fields of config.json that take more than the table."""
    read_head: Callable[[Raw, HeadKind], Values] = decoder_head
    write_head: Callable[[HeadConfig], dict[str, Any]] = write_classifier
    rows: Sequence[Row] | Callable[[ModelConfig], Sequence[Row]] = ()
    """The table of weight names, or a function that makes it where operations depend on the config."""
    experts: str = "model.layers.{i}.mlp.experts"
    """The module of Hugging Face's class that has the matrices of a layer's experts as parameters, gate_up_proj and
    down_proj; "": ours."""
    prefix: str = ""
    """Before the body's names in files of models with a head."""
    ignored: Sequence[str] = ()
    """Regular expressions of names on disk that can be left aside: buffers, and heads nobody asked for."""
    text_model: "Family | None" = None
    """The family of `text_config` in config.json, the part that is read, and as which such a model is written."""
    left_aside: str = ""
    """A sentence for people about what files hold beside the weights that are read, where some are `ignored`."""
    renamed: Sequence[tuple[str, str]] = ()
    """Regular expressions of names on disk that older files have, and what each is called now."""
    ties_missing_head: bool = False
    """A head that the file lacks is the token table, whatever config.json says."""
    published: Mapping[str, Raw] = field(default_factory=dict[str, Raw])
    """Presets: the fields of config.json that are not the defaults."""
    adjusted: Mapping[str, Values] = field(default_factory=dict[str, Values])
    """Fields of ModelConfig that a preset has and no config.json can say."""

    @cached_property
    def presets(self) -> dict[str, ModelConfig]:
        """The configs of the published models, with their language-model heads."""
        return {
            name: self.read(raw, "language_model").replace(**self.adjusted.get(name, {}))
            for name, raw in self.published.items()
        }

    @cached_property
    def json_names(self) -> dict[str, str]:
        """Field of ModelConfig, by dotted name -> field of config.json."""
        return {name: theirs for theirs, (ours, _) in self.fields.items() for name in ours.split()}

    def read(self, raw: Raw, head: HeadKind) -> ModelConfig:
        """The model that a config.json describes, with the head that its architecture has."""
        if self.text_model is not None:
            text = raw.get("text_config")
            if not isinstance(text, Mapping):
                raise UserError("config.json has no text_config, which describes the text model.")
            return self.text_model.read(ChainMap(cast("dict[str, Any]", text), cast("dict[str, Any]", raw)), head)
        refuse(raw, **self.refused)
        values = {**read_fields(raw, self.fields), **self.constants, **self.read_head(raw, head)}
        for name in ("encoder_layers", "decoder_layers"):
            if values.get(name) is not None:  # else it follows from another field, or is missing
                check_layers(values[name], f"config.json: {name}")
        return make_config({**values, **self.derived(raw, values, head)}, self.model_type)

    def write(self, config: ModelConfig) -> dict[str, Any]:
        """The fields of config.json that describe the architecture."""
        return {**write_fields(config, self.fields), **self.write_head(config.head), **self.written(config)}

    def table(self, config: ModelConfig, ours: Collection[str]) -> dict[str, Row]:
        """The row for every name on disk of a model with these weights; a family without rows keeps the names.

        The layers of a pooling are no part of it: they have files of their own (see `checkpoint.pooling`).

        Raises UserError for a weight that the family's format has no place for.
        """
        rows, ours = self.rows_of(config), [name for name in ours if not name.startswith("pooling.")]
        return resolve(rows, ours) if rows else {name: row(name, name) for name in ours}

    def rows_of(self, config: ModelConfig) -> Sequence[Row]:
        """The rows of the table for a config, before they are resolved."""
        return self.rows(config) if callable(self.rows) else self.rows

    def stored_names(self, config: ModelConfig, ours: str) -> list[str]:
        """The names on disk that one of our weights can have, with and without the prefix; aliases are none."""
        rows = self.rows_of(config)
        names = [line.theirs for line in rows if ours in line.ours and not line.alias] if rows else [ours]
        return [form for name in names for form in (name, name.removeprefix(self.prefix))]

    def current_name(self, name: str) -> str:
        """The name of a weight in the table, from one on disk that may be older."""
        for pattern, replacement in self.renamed:
            name = re.sub(pattern, replacement, name)
        return name

    def head(self, raw: Raw) -> HeadKind:
        """The head that config.json's `architectures` ask for. Raises UserError for one that is not known."""
        named: Any = raw.get("architectures") or [*self.architectures]
        name: Any = named[0] if isinstance(named, list) else named
        if not isinstance(name, str) or name not in self.architectures:
            raise UserError(
                f"config.json: the architecture {quote(name)} is not supported for model type "
                f"{self.model_type!r} ({nearest(str(name), self.architectures)})."
            )
        return self.architectures[name]

    def architectures_of(self, kind: HeadKind) -> list[str]:
        """The class names for a head, the usual one first."""
        return [name for name, own in self.architectures.items() if own == kind]


def read_fields(raw: Raw, fields: Fields) -> Values:
    """The fields of ModelConfig that a table reads from a config.json. Null stands for false, as in transformers."""
    values: Values = {}
    for theirs, (ours, default) in fields.items():
        for name in ours.split():
            value: Any = raw.get(theirs, default)
            if name.endswith(".activation"):
                values[name] = read_activation(value)
            elif name == "special_tokens.eos":
                several = isinstance(value, list | tuple)
                values[name] = () if value is None else tuple(cast("list[Any]", value)) if several else (value,)
            else:
                values[name] = False if value is None and isinstance(default, bool) else value
    return values


def write_fields(config: ModelConfig, fields: Fields) -> dict[str, Any]:
    """The inverse of `read_fields`."""
    config = complete(config)
    written: dict[str, Any] = {}
    for theirs, (ours, _) in fields.items():
        name = ours.split()[0]
        # A part that the model lacks, such as experts, has no fields.
        value: Any = reduce(lambda part, each: getattr(part, each, None), name.split("."), config)
        if name.endswith(".activation"):
            value = write_activation(value)
        elif name == "special_tokens.eos":
            value = None if not value else value[0] if len(value) == 1 else list(value)
        if value is not None or name != "special_tokens.decoder_start":
            written[theirs] = value
    return written


def supported(table: Mapping[str, T], name: str, subject: str) -> T:
    """The entry of a table. Raises UserError for a name that it lacks: "``subject`` 'name' is not supported"."""
    if name not in table:
        raise UserError(f"{subject} {quote(name)} is not supported ({nearest(str(name), table)}).")
    return table[name]


def read_activation(name: str) -> str:
    """Our name of an activation. Raises UserError for one that is not known."""
    return supported(ACTIVATIONS, name, "config.json: the activation")


def write_activation(name: str) -> str:
    """Hugging Face's name of an activation. Raises UserError where it has none."""
    for theirs, ours in ACTIVATIONS.items():
        if ours == name:
            return theirs
    raise UserError(f"Hugging Face has no name for the activation {quote(name)}.")


def make_config(values: Values, model_type: str) -> ModelConfig:
    """The config with these fields. What equals its default is left out, so that it follows changes of others."""
    config = make(ModelConfig, {**values, "model_type": model_type})
    attention = config.attention
    kv_heads = none_if_default(attention.kv_heads, attention.heads)
    head_dim = none_if_default(attention.head_dim, config.d_model / attention.heads)
    return replace(config, attention=replace(attention, kv_heads=kv_heads, head_dim=head_dim))


def complete(config: ModelConfig) -> ModelConfig:
    """The config with the numbers of key/value heads and widths of heads written out."""

    def full(attention: AttentionConfig) -> AttentionConfig:
        head_dim = attention.head_dim or config.d_model // attention.heads
        return replace(attention, kv_heads=attention.kv_heads or attention.heads, head_dim=head_dim)

    own = config.decoder_attention
    return replace(config, attention=full(config.attention), decoder_attention=None if own is None else full(own))


def refuse(raw: Raw, **unsupported: Any) -> None:
    """Raise UserError where config.json has a switch on that no model here can follow: refuse(raw, is_decoder=True)."""
    for name, value in unsupported.items():
        if raw.get(name) == value:
            kind = quote(raw.get("model_type"))
            raise UserError(f"config.json: {name} = {value} is not supported for model type {kind}.")


def none_if_default(value: T, default: object) -> T | None:
    """The value; None where it equals the default."""
    return None if value == default else value
