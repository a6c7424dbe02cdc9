"""config.yaml: the config of a run on disk."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import yaml

from anyformer import spec
from anyformer.config import ModelConfig
from anyformer.errors import UserError, cut, quote
from anyformer.schema import typed
from anyformer.spec import read_model
from anyformer.training.config import TrainConfig
from anyformer.training.run_config import RunConfig

_MODEL = ("vocab_size", "max_length")
"""Fields that the file keeps among the model's."""


def settings(config: RunConfig) -> dict[str, Any]:
    """All that decides a run, as plain values. Paths are absolute, so that they work from anywhere."""
    values: dict[str, Any] = {}
    common = {field.name for field in dataclasses.fields(RunConfig)}
    for field in sorted(dataclasses.fields(config), key=lambda field: field.name in common):  # what is trained first
        value: Any = getattr(config, field.name)
        if isinstance(value, ModelConfig):
            value = value.to_dict()
        elif isinstance(value, tuple):
            value = list(cast("tuple[str, ...]", value))
        if field.name in ("data", "validation"):
            value = [_absolute(source) for source in value]
        elif (
            isinstance(value, Path)
            or (field.name in ("source", "target") and value and not config.data)
            or (field.name == "base" and Path(value).exists())
        ):
            value = _absolute(value)
        if field.name not in ("name", *_MODEL):
            values[field.name] = value
    return values


def to_yaml(config: RunConfig) -> str:
    """The file that repeats this run."""
    return yaml.safe_dump(settings(config), sort_keys=False, allow_unicode=True)


def _absolute(source: str | Path) -> str:
    """The path from anywhere; standard input and data sets of the hub are no paths."""
    return str(source) if str(source) == "-" or str(source).startswith("hf:") else str(Path(source).absolute())


def read_yaml(path: Path, preset: str | None = None) -> TrainConfig:
    """Read a file such as `to_yaml` writes for a `TrainConfig`; fields may be left out, of the model as well.

    Args:
        path: the file.
        preset: a preset to take instead of the file's, and of its model.

    Raises:
        UserError: no such file, not YAML, or a field that is unknown (with the nearest valid name) or misshapen.
    """
    values = _mapping(path, TrainConfig)
    changes = values.get("model") if preset is None else None
    name, model = read_model(path, values, preset)
    values = {field: value for field, value in values.items() if field not in ("model", "preset")}
    made = _typed(path, values, TrainConfig)
    made |= {field: getattr(model, field) for field in _MODEL if changes and field in changes}
    return TrainConfig(preset=name, model=model, **made)


def read_fields(path: Path, kind: type[RunConfig]) -> dict[str, Any]:
    """Read the fields of a file such as `to_yaml` writes for this kind of config. Raises UserError as `read_yaml`."""
    return _typed(path, _mapping(path, kind), kind)


def _typed(path: Path, values: Mapping[str, Any], kind: type[RunConfig]) -> dict[str, Any]:
    for name, value in values.items():
        for each in cast("list[Any]", value if isinstance(value, list) else [value]):
            if isinstance(each, str) and "\0" in each:
                raise UserError(f"{path}: {cut(name)} can't be {quote(each)}: no path or name has a null character.")
    return typed(kind, values, f"{path}: ", from_text=True)  # YAML takes 1e-3 for text


def _mapping(path: Path, kind: type[RunConfig]) -> dict[str, Any]:
    found = spec.read_fields(path)
    if kind is TrainConfig and "base" in found:
        raise UserError(f"{path} is for fine-tuning, since it has the field base: use `anyformer finetune`.")
    for name in _MODEL:
        if name in found:
            raise UserError(f"{path}: {name}: no such field (did you mean 'model.{name}'?).")
    return found
