"""The directory of a run.

::

    runs/NAME/config.yaml     repeats the run: anyformer train (or finetune) --config runs/NAME/config.yaml
              metrics.jsonl   one JSON object a line: losses, evaluations, samples
              model/          a Hugging Face directory, loadable at any moment
              checkpoints/    what `anyformer train --resume runs/NAME` needs
              evaluation.json after fine-tuning: the task's metrics before and after it, and rows
              report.html     curves and samples, to be looked at
"""

import json
import math
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any, Self

from filelock import FileLock, Timeout

from anyformer import atomic, limits
from anyformer.errors import UserError

CONFIG = "config.yaml"
METRICS = "metrics.jsonl"
CHECKPOINTS = "checkpoints"
MODEL = "model"
EVALUATION = "evaluation.json"
LOCK = ".lock"
_HUB_ID = re.compile(r"[\w.-]{1,96}/[\w.-]{1,96}")
_LONGEST = 120
"""Characters of a name that is made up for a run: a file's may have 255."""


def model_directory(path: str | os.PathLike[str]) -> Path:
    """The model of a run directory; any other path is returned as it is."""
    directory = Path(path)
    inside = directory / MODEL
    return inside if (inside / "config.json").is_file() and not (directory / "config.json").is_file() else directory


def base_name(base: str) -> str:
    """The name of a model that was given as a hub id or a path: that of its repository, its run, or its folder."""
    if is_hub_id(base):
        return base
    path = Path(base).absolute()
    cached = next((part for part in reversed(path.parts) if part.startswith("models--")), None)
    if cached is not None:
        return cached.removeprefix("models--").replace("--", "/", 1)
    # The model of a run is in its folder model/, and what is called so elsewhere is told apart by its folder, too.
    return (path.parent.name if path.name == MODEL else path.name) or "model"


def is_hub_id(base: str) -> bool:
    """Whether a model is named by the hub's name for it, and is no file or folder of this machine."""
    return _HUB_ID.fullmatch(base) is not None and not Path(base).exists()


def check_run_directory(path: Path) -> None:
    """Check that a run can be taken up again. Raises UserError where there is none, or one that a link is part of."""
    if not (path / CONFIG).exists():
        raise UserError(f"There is no run in {path}: it has no {CONFIG}. --resume wants a folder such as runs/gpt2-1.")
    _open(path)


def _open(path: Path) -> None:
    """Raise UserError where something in the directory, which may come from anyone, would lead what a run writes
    elsewhere, or have it wait."""
    atomic.open_directory(path)
    limits.check_files(path, (CONFIG, METRICS, LOCK))


def free_names(preset: str) -> Iterator[str]:
    """Names for a run that was given none: `preset-N`."""
    return (f"{preset[:_LONGEST]}-{number}" for number in count(1))


class RunDirectory:
    """A run's own directory, which nothing else writes to.

    Args:
        writes: False for the processes that only look on.
    """

    def __init__(self, path: Path, *, writes: bool = True) -> None:
        self.path, self.writes = path, writes
        self.model, self.checkpoints = path / MODEL, path / CHECKPOINTS
        self._lock = FileLock(path / LOCK)
        self._is_first = False

    @classmethod
    def create(cls, runs: Path, name: str | None, preset: str) -> Self:
        """Make a new directory: `runs/name`, or without a name `runs/preset-N` with the first N that is free.

        Raises:
            UserError: it exists already, or can't be made.
        """
        names = [name] if name is not None else free_names(preset)
        is_first = not runs.exists()
        try:
            runs.mkdir(parents=True, exist_ok=True)
            for candidate in names:
                directory = cls(runs / candidate)
                directory._is_first = is_first
                with suppress(FileExistsError):
                    directory.path.mkdir()
                    break
                if name is not None and directory._is_bare():
                    directory.lock()
                    if directory._is_bare():
                        return directory
                    directory.unlock()
            else:
                raise UserError(
                    f"The run directory {runs / str(name)} exists already: choose another --name, or go on with it by "
                    f"--resume {runs / str(name)}."
                )
        except OSError as error:
            raise UserError(f"The run directory can't be made in {runs}: {error.strerror or error}.") from error
        try:
            directory.lock()
        except BaseException:  # Ctrl-C among them
            directory.discard()
            raise
        return directory

    def _is_bare(self) -> bool:
        """Whether nothing is here, or what is left of a run that was killed before it began."""
        return {file.name for file in self.path.iterdir()} <= {LOCK}

    def lock(self) -> None:
        """Keep others out until this process ends, however it ends.

        Raises:
            UserError: somebody is in, a symbolic link or a named pipe is in the directory, or it can't be written to.
        """
        try:
            _open(self.path)
            self._lock.acquire(timeout=0)
        except Timeout as error:
            raise UserError(f"{self.path} is being trained by another process: wait for it, or end it.") from error
        except OSError as error:
            raise UserError(f"{self.path} can't be written to: {error.strerror or error}.") from error

    def unlock(self) -> None:
        """Let others in."""
        self._lock.release()

    def write_config(self, text: str) -> None:
        """Write config.yaml. Raises UserError when the disk refuses."""
        if self.writes:
            atomic.write(self.path / CONFIG, text)

    def log(self, *records: Mapping[str, Any]) -> None:
        """Add lines to metrics.jsonl, all of them or none. Raises UserError when the disk refuses."""
        if not self.writes:
            return
        path = self.path / METRICS
        with atomic.writing(path):
            atomic.append(path, "".join(json.dumps(record, allow_nan=False) + "\n" for record in records))

    def finished(self) -> bool:
        """Whether the last line of metrics.jsonl says so."""
        lines = self._lines()
        return bool(lines) and _object(lines[-1]).get("state") == "finished"

    def rewind(self, step: int) -> None:
        """Take the lines after a step out of metrics.jsonl, for they will come again."""
        if not self.writes or not (lines := self._lines()):
            return
        kept = [line for line in lines if _step(line) <= step]
        atomic.write(self.path / METRICS, "".join(f"{line}\n" for line in kept))

    def _lines(self) -> list[str]:
        file = self.path / METRICS
        return limits.read_text(file, limits.LOG_BYTES).splitlines() if file.exists() else []

    def discard(self) -> None:
        """Remove the directory of a run that never began, and the folder that was made for it."""
        self.unlock()
        shutil.rmtree(self.path, ignore_errors=True)
        if self._is_first:
            with suppress(OSError):  # another run has come into it
                self.path.parent.rmdir()


def _step(line: str) -> float:
    """The step of a line of metrics.jsonl; infinite for one that was cut off, or says something else."""
    step = _object(line).get("step", math.inf)
    return step if isinstance(step, int | float) else math.inf


def _object(line: str) -> dict[str, Any]:
    """The object in a line of metrics.jsonl; empty where the line was cut off, or is no object."""
    with suppress(UserError):
        return limits.parse_object(line, METRICS)
    return {}
