"""Whether a run may go on from a checkpoint, and what has changed since."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from anyformer.errors import UserError
from anyformer.migration import current_settings
from anyformer.training.config import CompleteConfig
from anyformer.training.config_file import settings
from anyformer.training.progress import say

FREE = frozenset(
    {
        "grad_accumulation",
        "cache",
        "gradient_checkpointing",
        "compile",
        "device",
        "dtype",
        "engine",
        "evaluate_every",
        "keep",
        "log_every",
        "minutes",
        "processes",
        "save_every",
        "steps",
        "track",
        "workers",
        "zero_stage",
    }
)
"""What decides how long a run goes on and what carries it, not what is learnt at a step."""


def check(
    checkpoint: Path, facts: Mapping[str, Any], config: CompleteConfig, fingerprint: str, console: Console
) -> None:
    """Say what has changed since the checkpoint. Raises UserError where it would be another run."""
    before, now = _flat(current_settings(facts.get("config", {}))), _flat(json.loads(json.dumps(settings(config))))
    changes = {
        name: f"{name.replace('_', '-')} {before.get(name)} -> {now.get(name)}"
        for name in sorted({*before, *now})
        if before.get(name) != now.get(name)
    }
    forbidden = [change for name, change in changes.items() if name not in FREE]
    if forbidden:
        raise UserError(
            f"{checkpoint} can't be resumed with another config ({'; '.join(forbidden)}): change it back, or begin "
            "a new run."
        )
    if facts.get("fingerprint") != fingerprint:
        raise UserError(
            f"{checkpoint} can't be resumed: the data or the tokenizer has changed since. Put it back, or begin a "
            "new run."
        )
    for change in changes.values():
        say(console, f"changed    {change}")


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by dotted names."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat
