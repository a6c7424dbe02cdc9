"""The supported model type that is nearest to one that is not: not by its name, but by what its config.json says."""

from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

from typing_extensions import override

from anyformer.errors import UserError, cut, quote
from anyformer.families.base import Family, Raw

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


def unsupported(raw: Raw, families: Mapping[str, Family]) -> UserError | None:
    """The error for a config.json of a model type that is not among the families; None where none of them is near.

    Each family reads the config, and the nearest is the one that knows most of its fields.
    """
    said = [name for name, value in raw.items() if value and name not in _ABOUT_NO_MODEL]
    name, known = max(
        ((name, _known(raw, family)) for name, family in families.items()),
        key=lambda pair: _nearness(raw, said, families[pair[0]], pair[1]),
    )
    lacking = [field for field in said if field not in known]
    if len(said) - len(lacking) < _FEWEST:
        return None
    listed = ", ".join(map(quote, lacking[:_LISTED]))
    more = f" and {len(lacking) - _LISTED} more" if len(lacking) > _LISTED else ""
    lacks = (
        f"which does not know {listed}{more}" if lacking else "which knows all its fields: what differs is in its code"
    )
    kind = quote(raw.get("model_type"))
    return UserError(f"The model type {kind} is not supported; the nearest here is {name!r}, {lacks}.")


class _Asked(Mapping[str, Any]):
    """A config.json, and the names of the fields that were asked for."""

    def __init__(self, raw: Raw) -> None:
        self._raw, self.names = raw, set[str]()

    @override
    def __getitem__(self, name: str) -> Any:
        self.names.add(name)
        return self._raw[name]

    @override
    def __iter__(self) -> Iterator[str]:
        return iter(self._raw)

    @override
    def __len__(self) -> int:
        return len(self._raw)


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
