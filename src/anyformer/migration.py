"""Names that version 0.1 wrote to disk, and their names now: one table for each kind of file."""

import re
from collections.abc import Mapping
from typing import Any, cast

SETTINGS = {
    "accumulate": "grad_accumulation",
    "checkpoint_gradients": "gradient_checkpointing",
    "clip": "grad_clip",
    "reset_documents": "document_masking",
    "whole_words": "whole_word_masking",
}
"""Fields of config.yaml."""

MODEL = {"normalise": "normalize", "tokens": "special_tokens"}
"""Fields of a model's config, at any depth."""

WEIGHTS = (
    (r"(?<![^.])tokens\.table\.", "token_embedding.table."),
    (r"(?<![^.])source_tokens\.table\.", "source_embedding.table."),
)
"""Regular expressions of weights in our own format and in checkpoints, and their names now."""


def current_settings(values: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a config.yaml of any version, by the names that they have now."""
    settings = {SETTINGS.get(name, name): value for name, value in values.items()}
    return settings | {name: current_model(settings[name]) for name in ("model",) if name in settings}


def current_model(values: Any) -> Any:
    """The same for the fields of a model's config."""
    if not isinstance(values, Mapping):
        return values
    fields = cast("Mapping[str, Any]", values)
    return {MODEL.get(name, name): current_model(value) for name, value in fields.items()}


def current_weight(name: str) -> str:
    """The name that a weight, or a state of the optimizer for it, has now."""
    for pattern, replacement in WEIGHTS:
        name = re.sub(pattern, replacement, name)
    return name
