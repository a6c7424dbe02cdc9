"""Specifications of models: a preset, a file or a directory, with fields changed.

::

    llama                                      a preset
    llama:norm.kind=layer,decoder_layers=4     a preset with fields changed
    config.json, config.yaml                   of a model, of a run
    runs/llama-nano-1                          a run, a model directory, a GGUF file
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from anyformer.config import ModelConfig
from anyformer.config import diff as config_diff
from anyformer.config.model import from_earlier
from anyformer.errors import UserError, located, quote
from anyformer.families import ALIASES, PRESETS, from_huggingface, preset
from anyformer.limits import parse_json, path_inside, read_object, read_yaml
from anyformer.schema import ConfigError, change

if TYPE_CHECKING:
    from anyformer.blocks.initialization import Cut
    from anyformer.model import Transformer

DEFAULT_PRESET = "llama-nano"
"""The preset of a run that names none."""

_FIELDS = re.compile(r",(?=[^,=]+=)")
"""The comma between two fields; a value may have commas too."""
_WORDS = {"None": "null", "True": "true", "False": "false"}
"""Python's words in JSON."""


@dataclass(frozen=True)
class SpecifiedModel:
    """The model that a specification names, and the model or run directory that has its weights, if there are any."""

    spec: str
    config: ModelConfig
    directory: Path | None = None


def read_config(spec: str) -> SpecifiedModel:
    """Read the config of the model that a specification names, and none of its weights.

    Args:
        spec: A preset, a config.json, the config.yaml of a run, a model directory, a run directory or a GGUF file; any
            of them with fields changed, after a colon: ``llama:norm.kind=layer,attention.kv_heads=32``. Values are
            written as in JSON, text as it is.

    Raises:
        UserError: there is no such model, its file is misshapen, a field is unknown, or a value describes no
            transformer.
    """
    # A name on disk may have a colon; one of a preset has none.
    colons = [index for index, character in enumerate(spec) if character == ":"]
    end = next((end for end in (len(spec), *colons) if _exists(spec[:end])), min(colons, default=len(spec)))
    source, changes = spec[:end], spec[end + 1 :]
    path = Path(source) if _exists(source) else None
    is_file = _is_file(source) and source not in (*PRESETS, *ALIASES)
    if path is None and ("/" in source or Path(source).suffix in _READERS or is_file):
        found = f"{quote(source)} is a file, but describes no model" if is_file else f"There is no {quote(source)}"
        raise UserError(f"{found}: a model is a preset, a config file, a model or run directory, or a GGUF file.")
    config = preset(source) if path is None else _read_file(path)
    if end < len(spec):
        return SpecifiedModel(spec, _changed(config, changes, spec))
    return SpecifiedModel(spec, config, path if path is not None and path.is_dir() else None)


def config_of(model: ModelConfig | str | Path) -> ModelConfig:
    """The config of a model: itself, or that of the model which a specification names. Raises as `read_config`."""
    if isinstance(model, str | Path):
        return read_config(str(model)).config
    if not isinstance(cast("object", model), ModelConfig):
        kind = type(model).__name__
        raise UserError(f"A model is a config here, the name of a preset, or a path, and was given as a {kind}.")
    return model


def build(model: ModelConfig | str | Path, cut: Cut | None = None) -> Transformer:
    """A fresh model: weights drawn as the family's paper does, in training mode. Seed them with `torch.manual_seed`.

    Args:
        model: Its config, or a specification such as ``"gpt2-nano"``; see `read_config`. Weights on disk are not read.
        cut: What this process keeps of each matrix, as in `anyformer.model.build`.

    Raises:
        UserError: as `read_config`.
    """
    from anyformer.model import build as build_config  # with torch, for which --help doesn't wait

    return build_config(config_of(model), cut)


def diff(a: ModelConfig | str | Path, b: ModelConfig | str | Path) -> dict[str, tuple[Any, Any]]:
    """Differences of two models: ``{"norm.kind": ("layer", "rms"), ...}``; see `anyformer.config.diff`.

    Args:
        a, b: Configs, or specifications such as ``"gpt2"``; see `read_config`.

    Raises:
        UserError: as `read_config`.
    """
    return config_diff(config_of(a), config_of(b))


def _exists(source: str) -> bool:
    """Whether there is a directory of this name, or a file of a kind that is read."""
    with suppress(OSError, ValueError):  # too long for a name, or a null character
        path = Path(source)
        return bool(source) and (path.is_dir() or (path.suffix in _READERS and path.exists()))
    return False


def _is_file(source: str) -> bool:
    with suppress(OSError, ValueError):  # as above
        return Path(source).is_file()
    return False


def _read_file(path: Path) -> ModelConfig:
    if not path.is_dir():
        return _READERS[path.suffix](path)
    for name in ("config.json", "model/config.json"):
        if (path / name).exists():
            return _from_json(path_inside(path, name))
    from anyformer.checkpoint.adapter_directory import find_adapter

    if (adapter := find_adapter(path)) is not None:
        from anyformer.checkpoint.load import inspect_adapter

        return inspect_adapter(adapter)
    if (path / "config.yaml").exists():  # a run that has saved no model yet
        return _from_yaml(path_inside(path, "config.yaml"))
    raise UserError(f"{path} has no config.json, so it is not a model directory.")


def _from_json(path: Path) -> ModelConfig:
    raw = read_object(path)
    try:
        return from_huggingface(raw)
    except UserError as error:
        raise UserError(f"{path}: {str(error).removeprefix('config.json: ')}") from error


def _from_yaml(path: Path) -> ModelConfig:
    values = read_fields(path)
    if "base" not in values:
        return read_model(path, values)[1]
    from anyformer.checkpoint import hub
    from anyformer.checkpoint.load import inspect

    base = values["base"]
    if not isinstance(base, str):
        raise UserError(f"{path}: base: wants text, not {quote(base)}.")
    # Nothing is downloaded that a file asks for, nor followed further than to a model.
    if not (Path(base).exists() or hub.is_cached(base)):
        raise UserError(f"{path}: the run has saved no model yet, and its base {quote(base)} is not on this machine.")
    return inspect(base)[0]


def _from_gguf(path: Path) -> ModelConfig:
    from anyformer.checkpoint.gguf.container import Container
    from anyformer.checkpoint.gguf.source import read_config as read_gguf_config

    return read_gguf_config(Container(path))


_READERS = {".json": _from_json, ".yaml": _from_yaml, ".yml": _from_yaml, ".gguf": _from_gguf}


def read_fields(path: Path) -> dict[str, Any]:
    """Read the fields of a run's config.yaml. Raises UserError if there is none, or it is not YAML of fields."""
    if not path.exists():
        raise UserError(f"The config file {path} can't be read: No such file or directory.")
    values: object = read_yaml(path)
    if not isinstance(values, dict):
        raise UserError(f"The config file {path} should hold fields, such as `steps: 100`.")
    return cast("dict[str, Any]", values)


def read_model(path: Path, values: Mapping[str, Any], preset_name: str | None = None) -> tuple[str, ModelConfig]:
    """Read the preset and the model of a run that trains from scratch.

    Args:
        path, values: Its config.yaml, for messages, and the fields of that file.
        preset_name: A preset to take instead of the file's, and of its model.

    Raises:
        UserError: There is no such preset, or a field of the model is unknown or misshapen.
    """
    changes: Any = values.get("model") or {}
    name = preset_name or values.get("preset") or DEFAULT_PRESET
    if not isinstance(changes, dict) or not isinstance(name, str):
        raise UserError(f"{path}: model wants fields of its own, and preset a name.")
    try:
        fields = {} if preset_name is not None else from_earlier(cast("dict[str, Any]", changes))
        return name, change(preset(name), fields)
    except ConfigError as error:
        raise UserError(f"{path}: model.{error}") from error


def _changed(config: ModelConfig, changes: str, spec: str) -> ModelConfig:
    values: dict[str, Any] = {}
    for each in _FIELDS.split(changes):
        field, equals, value = each.partition("=")
        if not equals or not field.strip():
            raise UserError(f"{spec}: after the colon come fields, as in llama:norm.kind=layer; {quote(each)} is none.")
        values[field.strip()] = _value(value.strip())
    with located(spec):
        changed = config.replace(**values)
        _check_kinds(changed)
    return changed


def _value(text: str) -> Any:
    with suppress(UserError):
        return parse_json(_WORDS.get(text, text), "")
    return text


def _check_kinds(config: ModelConfig) -> None:
    """Raise ConfigError for a kind of block that does not exist, which only shows once it is made."""
    from anyformer.model import skeleton

    layers = {name: min(getattr(config, name), 1) for name in ("encoder_layers", "decoder_layers")}
    skeleton(replace(config, **layers))
