"""The record of a GGUF architecture: a two-way table of metadata keys, and one of tensor names."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

from anyformer.config import HeadKind, ModelConfig
from anyformer.errors import UserError, quote
from anyformer.families.base import Raw
from anyformer.families.rows import Row

Output = Literal["absent", "same", "scaled", "own"]


@dataclass(frozen=True)
class Contents:
    """Contents of a GGUF file without the weights."""

    metadata: Raw
    """Its key-value pairs."""
    shapes: Mapping[str, tuple[int, ...]]
    """Its tensors, the slowest dimension first (as in torch; the file counts the other way round)."""
    output: Output = "absent"
    """How `output.weight` compares with the token table: the same, the same over sqrt(d_model), or its own."""
    rope_factors: Sequence[float] | None = None
    """`rope_freqs.weight`: what each rotary frequency is divided by."""

    @property
    def architecture(self) -> str:
        """`general.architecture`. Raises UserError where it is missing."""
        name = self.metadata.get("general.architecture")
        if not isinstance(name, str):
            raise UserError("The file has no general.architecture, so it does not say what model it holds.")
        return name

    def get(self, key: str) -> Any:
        """The value of one of the architecture's own keys, None where it is missing."""
        return self.metadata.get(f"{self.architecture}.{key}")


@dataclass(frozen=True)
class Architecture:
    """One `general.architecture` of GGUF's.

    A model is read through Hugging Face's own words for it: `keys` translates metadata into fields of a config.json,
    which the family then reads as it does its files, and the way back goes through what the family writes.
    """

    name: str
    model_types: Sequence[str]
    """The families whose models it can hold; files are read as the first."""
    head: HeadKind
    keys: Mapping[str, str]
    """Key, after the architecture's name and a dot -> field of config.json. Two keys may say the same."""
    rows: Callable[[ModelConfig], Sequence[Row]]
    """The table of tensor names for a model of this config. Every operation moves whole rows, so that it can be
    applied to quantized tensors as well. An alias with an operation of its own (T5's head) has to be written: other
    programs look for it."""
    inferred: Callable[[Contents], dict[str, Any]] = lambda contents: {}
    """Fields of config.json that follow from which tensors there are, or from several keys."""
    more: Callable[[ModelConfig], dict[str, Any]] = lambda config: {}
    """The keys, after the architecture's name and a dot, that `inferred` reads."""
    adjust: Callable[[ModelConfig, Contents], ModelConfig] = lambda config, contents: config
    """Adjustment by contents that no config.json can express."""
    ignored: Sequence[str] = ()
    """Regular expressions of tensor names that hold no weight of the model."""

    def read(self, contents: Contents) -> dict[str, Any]:
        """The fields of config.json. Raises UserError for a key that is missing or misshapen."""
        raw: dict[str, Any] = {}
        for key, field in self.keys.items():
            value = contents.get(key)
            if value is not None:
                raw[field] = _number(f"{self.name}.{key}", value)
        for key in _REQUIRED:
            if key in self.keys and self.keys[key] not in raw:
                raise UserError(f"The key {self.name}.{key} is missing.")
        if "token_embd.weight" not in contents.shapes:
            raise UserError("The tensor token_embd.weight is missing.")
        raw["vocab_size"] = contents.shapes["token_embd.weight"][0]
        return {**raw, **self.inferred(contents), **_tokens(contents)}

    def write(self, config: ModelConfig, raw: Raw) -> dict[str, Any]:
        """The metadata that `read` reads, from the family's config.json."""
        given = {key: raw[field] for key, field in self.keys.items() if raw.get(field) is not None}
        values = {"vocab_size": config.vocab_size, **given, **self.more(config)}
        return {"general.architecture": self.name, **{f"{self.name}.{key}": value for key, value in values.items()}}


_REQUIRED = (
    "block_count",
    "context_length",
    "embedding_length",
    "feed_forward_length",
    "attention.head_count",
    "attention.layer_norm_rms_epsilon",
    "attention.layer_norm_epsilon",
)


def _number(key: str, value: Any) -> int | float:
    if isinstance(value, list) and value and all(v == value[0] for v in cast("list[Any]", value)):
        value = cast("list[Any]", value)[0]  # one number for each layer
    if isinstance(value, bool) or not isinstance(value, int | float) or value < 0:
        raise UserError(f"The key {key} should be one positive number, not {quote(value)}.")
    return value


def layers(contents: Contents, prefix: str = "") -> int:
    """How many layers the file's tensors count: `blk.0`, `blk.1`, ..."""
    pattern = re.compile(re.escape(prefix) + r"blk\.(\d{1,9})\.")
    return 1 + max((int(m[1]) for name in contents.shapes if (m := pattern.match(name))), default=-1)


_TOKEN_KEYS = {
    "bos_token_id": "tokenizer.ggml.bos_token_id",
    "eos_token_id": "tokenizer.ggml.eos_token_id",
    "pad_token_id": "tokenizer.ggml.padding_token_id",
}
_ENDS = ("tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id")


def _tokens(contents: Contents) -> dict[str, Any]:
    """Ids of special tokens. A conversation may end with a token of its own beside the end of a text."""
    size = contents.shapes["token_embd.weight"][0]

    def known(key: str) -> int | None:
        value = contents.metadata.get(key)
        return value if isinstance(value, int) and 0 <= value < size else None

    raw: dict[str, Any] = {field: known(key) for field, key in _TOKEN_KEYS.items()}
    ends = dict.fromkeys(value for value in (raw["eos_token_id"], *(known(key) for key in _ENDS)) if value is not None)
    if len(ends) > 1:
        raw["eos_token_id"] = list(ends)
    return raw
