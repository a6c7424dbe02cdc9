"""What run directories tell: read back, summed up, and set side by side.

A run is read while it is being written, after it was killed in the middle of a line, and with lines that an older or a
newer version wrote: whatever is missing is None, whatever can't be read is counted.
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, cast

import yaml

from anyformer.errors import UserError, nearest
from anyformer.families import preset as find_preset
from anyformer.migration import current_settings
from anyformer.runs.directory import CONFIG, METRICS

State = Literal["running", "finished", "stopped", "diverged"]
Line = Mapping[str, Any]

_ENDS: dict[str, State] = {"finished": "finished", "stopped": "stopped", "diverged": "diverged"}
_LARGEST = sys.float_info.max

_QUIET = 600.0
"""Seconds without a new line after which a run that did not say how it ended counts as stopped."""

_PLACES = ("name", "runs", "model.model_type")
"""Settings that say where a run is, not what it does."""


@dataclass(frozen=True, slots=True)
class Run:
    """A run directory, as far as it can be read.

    Attributes:
        path: the directory.
        config: config.yaml, as it stands; empty where it can't be read.
        header: what the run said when it began (`parameters`, `flops_per_token`, `peak_flops_per_second`, `device`...).
        steps: lines of metrics.jsonl on training, by rising step.
        evaluations: lines on the validation text.
        samples: lines with a sample.
        broken: lines that are no JSON objects: a run that was killed leaves half a line.
        state: how it ended, or that it hasn't.
        reason: why it ended, where it said so.
        begun: when, in seconds since 1970.
    """

    path: Path
    config: dict[str, Any]
    header: dict[str, Any]
    steps: list[Line]
    evaluations: list[Line]
    samples: list[Line]
    broken: int
    state: State
    reason: str
    begun: float

    @property
    def name(self) -> str:
        """The directory's own name."""
        return self.path.resolve().name

    @property
    def preset(self) -> str | None:
        """The preset that the model began as."""
        name = self.config.get("preset")
        return name if isinstance(name, str) else None

    @property
    def parameters(self) -> int | None:
        """Weights of the model."""
        count = number(self.header, "parameters")
        return None if count is None else round(count)

    @property
    def step(self) -> int | None:
        """The latest step."""
        return max((int(line["step"]) for line in (*self.steps[-1:], *self.evaluations[-1:])), default=None)

    @property
    def tokens(self) -> int | None:
        """Tokens that it has been trained on."""
        count = self._latest("tokens")
        return None if count is None else round(count)

    @property
    def seconds(self) -> float | None:
        """How long it has trained."""
        times = [number(lines[-1], "elapsed") for lines in (self.steps, self.evaluations) if lines]
        return max((seconds for seconds in times if seconds is not None), default=None)

    @property
    def tokens_per_second(self) -> float | None:
        """Mean speed of the training steps: evaluations and saves are left out."""
        tokens = spent = before = 0.0
        for line in self.steps:
            total, speed = number(line, "tokens"), number(line, "tokens_per_second")
            if total is not None and speed:
                spent += (total - before) / speed
                tokens, before = total, total
        return tokens / spent if spent > 0 else None

    @property
    def flops_per_second(self) -> float | None:
        """Floating-point operations a second that its mean speed comes to."""
        known = [value for line in self.steps if (value := flops_per_second(self.header, line)) is not None]
        return sum(known) / len(known) if known else None

    @property
    def peak_share(self) -> float | None:
        """The share of the machine's measured peak that this is."""
        peak, reached = number(self.header, "peak_flops_per_second"), self.flops_per_second
        return reached / peak if peak and reached is not None else None

    @property
    def validation_loss(self) -> float | None:
        """Of the latest evaluation, in nats a token."""
        return number(self.evaluations[-1], "validation_loss") if self.evaluations else None

    @property
    def bits_per_byte(self) -> float | None:
        """Of the latest evaluation."""
        return number(self.evaluations[-1], "bits_per_byte") if self.evaluations else None

    @property
    def best(self) -> Line | None:
        """The evaluation with the lowest validation loss."""
        known = [line for line in self.evaluations if number(line, "validation_loss") is not None]
        return min(known, key=lambda line: line["validation_loss"], default=None)

    def summary(self) -> dict[str, Any]:
        """What a list of runs says of this one, as JSON has it."""
        return {
            "name": self.name,
            "path": str(self.path),
            "preset": self.preset,
            "parameters": self.parameters,
            "state": self.state,
            "step": self.step,
            "tokens": self.tokens,
            "seconds": self.seconds,
            "tokens_per_second": self.tokens_per_second,
            "peak_share": self.peak_share,
            "validation_loss": self.validation_loss,
            "best_validation_loss": None if self.best is None else self.best["validation_loss"],
            "bits_per_byte": self.bits_per_byte,
            "broken_lines": self.broken,
        }

    def _latest(self, name: str) -> float | None:
        return next((value for line in reversed(self.steps) if (value := number(line, name)) is not None), None)


def number(line: Line, name: str) -> float | None:
    """A field that is a finite number, else None."""
    value = line.get(name)
    if isinstance(value, (float, int)) and not isinstance(value, bool) and -_LARGEST < value < _LARGEST:
        return float(value)
    return None


def flops_per_second(header: Line, line: Line) -> float | None:
    """What a line on training reached: as it says itself, else its speed times the header's `flops_per_token`."""
    if (reached := number(line, "flops_per_second")) is not None:
        return reached
    each, speed = number(header, "flops_per_token"), number(line, "tokens_per_second")
    return None if each is None or speed is None else each * speed


def is_run(path: Path) -> bool:
    """Whether this is a run directory."""
    return (path / METRICS).is_file() or (path / CONFIG).is_file()


def read_run(path: Path) -> Run:
    """Read a run directory.

    Raises:
        UserError: there is none, or the disk refuses.
    """
    if not path.is_dir():
        raise UserError(f"There is no run directory {path}{_hint(path)}.")
    if not is_run(path):
        raise UserError(f"{path} is no run directory: it has neither {METRICS} nor {CONFIG}.")
    lines, broken = _lines(path / METRICS)
    log = _Log()
    for line in lines:
        log.take(line)
    config = _config(path / CONFIG)
    return Run(
        path=path,
        config=config,
        header=log.header,
        steps=log.steps,
        evaluations=log.evaluations,
        samples=log.samples,
        broken=broken,
        state=_state(path, config, log),
        reason=str(log.end.get("reason") or "") if log.end else "",
        begun=_begun(path, log.header),
    )


def read_runs(directory: Path) -> list[Run]:
    """All runs in a directory, newest first. Raises UserError where there is no such directory, or no run in it."""
    if not directory.is_dir():
        raise UserError(f"There is no directory {directory}.")
    found = [read_run(path) for path in sorted(directory.iterdir()) if path.is_dir() and is_run(path)]
    if not found:
        raise UserError(f"There are no runs in {directory}: `anyformer train` makes one.")
    return sorted(found, key=lambda run: run.begun, reverse=True)


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by dotted name: `{"model.attention.heads": 4}`."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(cast("Mapping[str, Any]", value), f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = cast("Any", value)
    return flat


def usual(preset: str | None, defaults: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a run that was given nothing but this preset, by dotted name.

    Args:
        preset: a preset's name; for one that there is none of, the model's settings are left out.
        defaults: the default of each setting but the model's.
    """
    settings = dict(defaults)
    with contextlib.suppress(UserError):
        # of another version, perhaps
        settings["model"] = find_preset(preset or "").to_dict()
    return {name: list(value) if isinstance(value, tuple) else value for name, value in flatten(settings).items()}


def differences(runs: Sequence[Run]) -> dict[str, list[Any]]:
    """The settings in which runs differ, by dotted name, with the value of each run (None: it has no such setting)."""
    settings = [flatten(run.config) for run in runs]
    names = dict.fromkeys(name for each in settings for name in each if name not in _PLACES)
    rows = {name: [each.get(name) for each in settings] for name in names}
    return {name: values for name, values in rows.items() if any(value != values[0] for value in values)}


@dataclass
class _Log:
    """The lines of metrics.jsonl, sorted; what a resumed run does again counts once, as it was done last."""

    header: dict[str, Any] = field(default_factory=dict[str, Any])
    steps: list[Line] = field(default_factory=list[Line])
    evaluations: list[Line] = field(default_factory=list[Line])
    samples: list[Line] = field(default_factory=list[Line])
    end: Line | None = None

    def take(self, line: dict[str, Any]) -> None:
        if "started" in line:
            self.header = {**line, **({"started": self.header["started"]} if self.header else {})}
            self.end = None
            return
        if "state" in line:
            self.end = line
        step = line.get("step")
        if isinstance(step, bool) or not isinstance(step, int) or abs(step) > _LARGEST:
            return
        if "loss" in line:
            if self.steps and self.steps[-1]["step"] >= step:
                self._rewind(step)
            self.steps.append(line)
        if "validation_loss" in line:
            self.evaluations = _before(self.evaluations, step)
            self.evaluations.append(line)
        if "sample" in line:
            self.samples.append(line)

    def _rewind(self, step: int) -> None:
        self.steps = _before(self.steps, step)
        self.evaluations = _before(self.evaluations, step)
        self.samples = _before(self.samples, step)


def _before(lines: list[Line], step: int) -> list[Line]:
    while lines and lines[-1]["step"] >= step:
        lines.pop()
    return lines


def _lines(path: Path) -> tuple[list[dict[str, Any]], int]:
    """The objects in a file of JSON lines, and how many other lines there are."""
    try:
        text = path.read_bytes().decode("utf-8", errors="replace") if path.is_file() else ""
    except OSError as error:
        raise UserError(f"{path} can't be read: {error.strerror or error}.") from error
    found: list[dict[str, Any]] = []
    broken = 0
    for row in text.split("\n"):
        if not row.strip():
            continue
        try:
            value: object = json.loads(row)
        except (ValueError, RecursionError):
            broken += 1
            continue
        if isinstance(value, dict):
            found.append(cast("dict[str, Any]", value))
        else:
            broken += 1
    return found, broken


def _config(path: Path) -> dict[str, Any]:
    try:
        values: object = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError, UnicodeDecodeError):
        # The run can be shown without; `anyformer train --config` is what complains about this file.
        return {}
    if not _is_mapping(values):
        return {}
    return current_settings({str(name): value for name, value in cast("dict[Any, Any]", values).items()})


def _is_mapping(values: object) -> bool:
    return isinstance(values, dict)


def _state(path: Path, config: Line, log: _Log) -> State:
    if log.end is not None and log.end["state"] in _ENDS:
        return _ENDS[log.end["state"]]
    if any(lines and number(lines[-1], name) is None for lines, name in _scores(log)):
        return "diverged"
    planned = number(config, "steps")
    if planned is not None and log.steps and log.evaluations:
        done = log.steps[-1]["step"]
        if done >= planned and log.evaluations[-1]["step"] >= done:
            return "finished"
    times = [seconds for line in log.steps if (seconds := number(line, "elapsed")) is not None]
    longest = max((after - before for before, after in pairwise(times)), default=0.0)
    return "running" if time.time() - _modified(path) < max(_QUIET, 5 * longest) else "stopped"


def _scores(log: _Log) -> list[tuple[list[Line], str]]:
    return [(log.steps, "loss"), (log.evaluations, "validation_loss")]


def _begun(path: Path, header: Line) -> float:
    try:
        return datetime.fromisoformat(str(header.get("started"))).timestamp()
    except ValueError:
        return _modified(path)


def _modified(path: Path) -> float:
    file = path / METRICS
    return (file if file.is_file() else path).stat().st_mtime


def _hint(path: Path) -> str:
    """The nearest name beside it, where one is near."""
    parent = path.parent
    names = [each.name for each in parent.iterdir() if is_run(each)] if parent.is_dir() else []
    hint = nearest(path.name, names)
    return f" ({hint})" if hint.startswith("did") else ""
