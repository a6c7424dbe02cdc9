"""What commands that look at a config have in common: a preset or a directory, and fields changed by flags."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from anyformer.config import ModelConfig
from anyformer.errors import UserError
from anyformer.families import from_huggingface, preset
from anyformer.tokenizer.files import parse_object, read_bytes


def config_of(name: str) -> ModelConfig:
    """The config of a preset, of a model or run directory, or of a GGUF file. Raises UserError if it is none."""
    path = Path(name)
    if path.suffix == ".gguf" and path.is_file():
        from anyformer.checkpoint.gguf.container import Container
        from anyformer.checkpoint.gguf.read import read_config

        return read_config(Container(path))
    if not path.is_dir():
        return preset(name)
    for file in (path / "config.json", path / "model" / "config.json"):
        if file.is_file():
            return from_huggingface(parse_object(read_bytes(file), file))
    raise UserError(f"{name} has no config.json, so it is not a model directory.")


def positional(argv: Sequence[str], count: int, usage: str) -> tuple[list[str], list[str]]:
    """The leading arguments that are not flags, and the rest. Raises UserError unless there are `count` of them."""
    given = list(argv[:count])
    if len(given) < count or any(value.startswith("-") for value in given):
        raise UserError(f"usage: {usage}")
    return given, list(argv[count:])


_ALWAYS = {"heads", "width", "activation", "kind", "placement", "eps", "tied"}


def essentials(config: Any, prefix: str = "") -> list[tuple[str, Any]]:
    """The fields of a config that a person wants to see: what it must say, and what is not as usual."""
    rows: list[tuple[str, Any]] = []
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            if field.default_factory is dataclasses.MISSING or value != field.default_factory():
                rows += essentials(value, f"{prefix}{field.name}.")
        elif field.name in _ALWAYS or value != field.default:
            rows.append((f"{prefix}{field.name}", value))
    return rows


def text(value: object) -> str:
    """A field's value, as a person would write it."""
    if value is None or value == ():
        return "-"
    if dataclasses.is_dataclass(value):
        return ", ".join(f"{name} {text(part)}" for name, part in essentials(value))
    return f"{value:g}" if isinstance(value, float) else str(value)
