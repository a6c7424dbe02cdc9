"""Settings that a config.yaml can't decide alone, as it may come from a stranger: the command line has to repeat them.

It describes a run. What starts programs, contacts a network or writes outside the run directory is asked for by the
person who starts it.
"""

import os
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from anyformer.errors import UserError
from anyformer.limits import RECORD_BYTES
from anyformer.schema import flag
from anyformer.training.run_config import RunConfig

_READS = ("data", "validation", "source", "target", "tokenizer", "base", "cache")

T = TypeVar("T", bound=RunConfig)


def check_consent(config: T, file: Path, given: Mapping[str, Any], *, resume: bool = False) -> T:
    """The config that a file holds, if the command line agrees to what it asks for.

    Several processes, their engine and the trackers have to be given there, as do data sets of the hub, a model of the
    hub that was not downloaded before, pickled weights, a folder for runs other than the current or the file's own, a
    cache folder where no cache is yet, and a higher limit. Of a file
    that belongs to another user (but root) so do the files that are read: they might be such as the other may not read.
    More processes that tokenize than there are cores are not started.

    Args:
        given: the values of the flags, by field.
        resume: whether the run goes on in the folder of the file.

    Raises:
        UserError: a flag is missing; the sentence names all of them.
    """
    missing = {name: value for name, value in _asked(config, file, resume=resume) if name not in given}
    if missing:
        # The model has no flag.
        flags = " ".join(
            shlex.quote(str(value)) if name == "base" else flag(name, value) for name, value in missing.items()
        )
        raise UserError(
            f"{file} asks for what only the command line may decide, as a config file may come from a stranger. If you "
            f"want it, add {flags}"
        )
    too_many = config.workers is not None and config.workers > (os.cpu_count() or 1)
    return replace(config, workers=None) if too_many else config


def _asked(config: RunConfig, file: Path, *, resume: bool) -> Iterator[tuple[str, Any]]:
    if config.processes > 1:
        yield "processes", config.processes
    for name in ("engine", "track"):
        if getattr(config, name):
            yield name, getattr(config, name)
    own = {Path("runs").absolute(), file.absolute().parent.parent}
    if not resume and config.runs.absolute() not in own:
        yield "runs", config.runs
    if config.max_record_bytes > RECORD_BYTES:
        yield "max_record_bytes", config.max_record_bytes
    if getattr(config, "allow_pickle", False):
        yield "allow_pickle", True
    foreign = os.name == "posix" and file.stat().st_uid not in (0, os.geteuid())
    for name in _READS:
        value: Any = getattr(config, name, None)
        if name == "cache":
            asks = value is not None and (foreign or not (value / "tokens").is_dir())
        elif name == "base":
            asks = value is not None and (foreign or not (Path(value).exists() or _is_cached(value)))
        else:
            hub = isinstance(value, tuple) and any(str(path).startswith("hf:") for path in value)
            asks = bool(value) and (foreign or hub)
        if asks:
            yield name, value


def _is_cached(name: str) -> bool:
    from anyformer.checkpoint.hub import is_cached  # it imports torch

    return is_cached(name)
