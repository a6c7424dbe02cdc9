"""config.yaml: the config of a run on disk, and what it may not decide alone.

The file may come from a stranger. What starts programs, contacts a network or writes outside the run directory is asked
for by the person who starts the run: the command line has to repeat it.
"""

import dataclasses
import os
import shlex
from collections.abc import Container, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar, cast

import yaml

from anyformer import spec
from anyformer.config import ModelConfig
from anyformer.errors import UserError, cut, quote
from anyformer.limits import RECORD_BYTES
from anyformer.runs.directory import check_run_directory
from anyformer.schema import flag, typed
from anyformer.training.config import RunConfig, TrainConfig

_MODEL = ("vocab_size", "max_length")
"""Fields that the file keeps among the model's."""
_READS = ("data", "validation", "source", "target", "tokenizer", "base", "cache")

T = TypeVar("T", bound=RunConfig)


def settings(config: RunConfig) -> dict[str, Any]:
    """All that decides a run, as plain values. Paths are absolute, so that they work from anywhere."""
    values: dict[str, Any] = {}
    common = {field.name for field in dataclasses.fields(RunConfig)}
    # The fields of what is trained come first.
    for field in sorted(dataclasses.fields(config), key=lambda field: field.name in common):
        name = field.name
        value: Any = getattr(config, name)
        if isinstance(value, ModelConfig):
            value = value.to_dict()
        elif name in ("data", "validation"):
            value = [absolute(source) for source in value]
        elif isinstance(value, tuple):
            value = list(cast("tuple[str, ...]", value))
        elif (
            isinstance(value, Path)
            or (name == "base" and Path(value).exists())
            or (name in ("source", "target") and value and not config.data)
        ):
            value = absolute(value)
        if name not in ("name", "scheduler", *_MODEL):
            values[name] = value
    return values


def to_yaml(config: RunConfig) -> str:
    """The file that repeats this run."""
    return yaml.safe_dump(settings(config), sort_keys=False, allow_unicode=True)


def absolute(source: str | Path) -> str:
    """The absolute path; standard input and data sets of the hub are no paths."""
    return str(source) if str(source) == "-" or str(source).startswith("hf:") else str(Path(source).absolute())


def read_yaml(path: Path, preset: str | None = None) -> TrainConfig:
    """Read a file such as `to_yaml` writes for a `TrainConfig`; fields may be left out, of the model as well.

    Args:
        preset: a preset to take instead of the file's, and of its model.

    Raises:
        UserError: no such file, not YAML, or a field that is unknown (with the nearest valid name) or misshapen.
    """
    values = _mapping(path, TrainConfig)
    changes = values.get("model") if preset is None else None
    name, model = spec.read_model(path, values, preset)
    fields = _typed(path, {name: values[name] for name in values if name not in ("model", "preset")}, TrainConfig)
    fields |= {name: getattr(model, name) for name in _MODEL if changes and name in changes}
    return TrainConfig(preset=name, model=model, **fields)


def check_resumed(run: Path, changes: Container[str], dashes: str = "--") -> None:
    """Raise UserError where there is no run to go on with, or a change would have it somewhere else.

    Args:
        dashes: Put before the names of options in the message; Python's arguments have none.
    """
    check_run_directory(run)
    for name in ("name", "runs", "config"):
        if name in changes:
            raise UserError(f"{dashes}resume goes on in {run}: leave out {dashes}{name}.")


def read_fields(path: Path, kind: type[RunConfig]) -> dict[str, Any]:
    """Read the fields of a file such as `to_yaml` writes for this kind of config. Raises UserError as `read_yaml`."""
    return _typed(path, _mapping(path, kind), kind)


def _mapping(path: Path, kind: type[RunConfig]) -> dict[str, Any]:
    values = spec.read_fields(path)
    if kind is TrainConfig and "base" in values:
        raise UserError(f"{path} is for fine-tuning, since it has the field base: use `anyformer finetune`.")
    for name in _MODEL:
        if name in values:
            raise UserError(f"{path}: {name}: no such field (did you mean 'model.{name}'?).")
    return values


def _typed(path: Path, values: Mapping[str, Any], kind: type[RunConfig]) -> dict[str, Any]:
    for name, value in values.items():
        for each in cast("list[Any]", value if isinstance(value, list) else [value]):
            if isinstance(each, str) and "\0" in each:
                raise UserError(f"{path}: {cut(name)} can't be {quote(each)}: no path or name has a null character.")
    return typed(kind, values, f"{path}: ", from_text=True)  # YAML takes 1e-3 for text


def check_consent(config: T, file: Path, flags: Mapping[str, Any], *, resume: bool = False) -> T:
    """The config that a file holds, if the command line agrees to what it asks for.

    The command line has to repeat several processes, their engine and layout, trackers, data sets of the hub, a model
    of the hub that was not downloaded before, pickled weights, a scheduler, a folder for runs other than the current or
    the file's own, a cache folder where no cache is yet, and a higher limit. If the file belongs to another user
    (except root), so it has to repeat the files that are read: the other may not be allowed to read them. No more
    processes that tokenize are started than there are cores.

    Args:
        flags: the values of the flags, by field.
        resume: whether the run goes on in the folder of the file.

    Raises:
        UserError: a flag is missing; the sentence names all of them.
    """
    if flags.get("engine", "fsdp") != "fsdp":  # whose processes alone have a layout
        config = dataclasses.replace(config, tensor_parallel=1, context_parallel=1)
    missing = {name: value for name, value in _to_repeat(config, file, resume=resume) if name not in flags}
    if missing:
        # The model has no flag.
        words = " ".join(
            shlex.quote(str(value)) if name == "base" else flag(name, value) for name, value in missing.items()
        )
        raise UserError(
            f"{file} asks for what only the command line may decide, as a config file may come from a stranger. If you "
            f"want it, add {words}"
        )
    too_many = config.workers is not None and config.workers > (os.cpu_count() or 1)
    return dataclasses.replace(config, workers=None) if too_many else config


def _to_repeat(config: RunConfig, file: Path, *, resume: bool) -> Iterator[tuple[str, Any]]:
    own = {Path("runs").absolute(), file.absolute().parent.parent}
    conditions = {
        "processes": config.processes > 1,
        "engine": config.engine,
        "tensor_parallel": config.tensor_parallel > 1,
        "context_parallel": config.context_parallel > 1,
        "track": config.track,
        "runs": not resume and config.runs.absolute() not in own,
        "max_record_bytes": config.max_record_bytes > RECORD_BYTES,
        "allow_pickle": getattr(config, "allow_pickle", False),
        "scheduler": getattr(config, "scheduler", None),
    }
    yield from ((name, getattr(config, name)) for name, applies in conditions.items() if applies)
    foreign = os.name == "posix" and file.stat().st_uid not in (0, os.geteuid())
    for name in _READS:
        value: Any = getattr(config, name, None)
        if name == "cache":
            new = value is not None and not (value / "tokens").is_dir()
        elif name == "base":
            new = value is not None and not (Path(value).exists() or _is_cached(value))
        else:
            new = isinstance(value, tuple) and any(str(path).startswith("hf:") for path in cast("Any", value))
        if new or (foreign and value):
            yield name, value


def _is_cached(name: str) -> bool:
    from anyformer.checkpoint.hub import is_cached  # it imports torch

    return is_cached(name)
