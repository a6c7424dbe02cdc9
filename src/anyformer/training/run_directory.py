"""What a run leaves behind.

::

    runs/NAME/config.yaml     repeats the run: anyformer train --config runs/NAME/config.yaml
              metrics.jsonl   one JSON object a line: losses and evaluations
              model/          a Hugging Face directory, loadable at any moment
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from itertools import count
from pathlib import Path
from typing import Any, Self

from anyformer.errors import UserError

CONFIG = "config.yaml"
METRICS = "metrics.jsonl"
MODEL = "model"


def model_directory(path: str | os.PathLike[str]) -> Path:
    """The model of a run directory; any other path is returned as it is."""
    where = Path(path)
    inside = where / MODEL
    return inside if (inside / "config.json").is_file() and not (where / "config.json").is_file() else where


class RunDirectory:
    """A run's own directory, which nothing else writes to.

    Attributes:
        path: where it is.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def create(cls, runs: Path, name: str | None, preset: str) -> Self:
        """Make a new directory: `runs/name`, or without a name `runs/preset-N` with the first N that is free.

        Raises:
            UserError: it exists already, or can't be made.
        """
        names = [name] if name is not None else (f"{preset}-{number}" for number in count(1))
        try:
            runs.mkdir(parents=True, exist_ok=True)
            for candidate in names:
                try:
                    (runs / candidate).mkdir()
                except FileExistsError:
                    continue
                return cls(runs / candidate)
        except OSError as error:
            raise UserError(f"The run directory can't be made in {runs}: {error.strerror or error}.") from error
        raise UserError(f"The run directory {runs / str(name)} exists already: choose another --name.")

    @property
    def model(self) -> Path:
        """Where the model is."""
        return self.path / MODEL

    def write_config(self, text: str) -> None:
        """Write config.yaml. Raises UserError when the disk refuses."""
        place = self.path / CONFIG
        beside = place.with_name(f".{CONFIG}.tmp")
        try:
            beside.write_text(text, encoding="utf-8")
            beside.replace(place)
        except OSError as error:
            raise UserError(f"{place} can't be written: {error.strerror or error}.") from error

    def log(self, record: Mapping[str, Any]) -> None:
        """Add a line to metrics.jsonl. Raises UserError when the disk refuses."""
        place = self.path / METRICS
        try:
            with place.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record, allow_nan=False) + "\n")
        except OSError as error:
            raise UserError(f"{place} can't be written: {error.strerror or error}.") from error

    def discard(self) -> None:
        """Remove the directory of a run that never began."""
        shutil.rmtree(self.path, ignore_errors=True)
