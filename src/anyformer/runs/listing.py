"""Runs read back from their directories, summarized and compared.

A run can be read while it is being written, after it was killed in the middle of a line, and with lines of an older or
a newer version: what is missing is None, and lines that can't be read are counted.
"""

import contextlib
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple, cast

from anyformer import limits, terminal
from anyformer.errors import UserError, nearest
from anyformer.families import preset as find_preset
from anyformer.runs.directory import CONFIG, EVALUATION, METRICS

Line = Mapping[str, Any]

_SUMMARY = (
    *("name", "path", "preset", "parameters", "state", "step", "tokens", "seconds", "tokens_per_second", "peak_share"),
    *("validation_loss", "best_validation_loss", "bits_per_byte", "broken_lines"),
)
_LARGEST = sys.float_info.max

_QUIET = 600.0
"""Seconds without a new line after which a run that did not say how it ended counts as stopped."""

_LOCATION = ("name", "runs", "model.model_type")
"""Settings that say where a run is, not what it does."""

PER_TOKEN = "nats per token"
"""The loss of a model that predicts tokens."""


class Terms(NamedTuple):
    """The terms of a run on a page.

    Attributes:
        loss: The quantity and the unit of its loss.
        generates: Whether the model answers with texts.
    """

    loss: str = PER_TOKEN
    generates: bool = True

    @property
    def per_token(self) -> bool:
        """Whether the loss is that of a token, whose exponential is the perplexity."""
        return self.loss == PER_TOKEN


@dataclass
class Run:
    """The content of a run directory, as far as it can be read.

    Attributes:
        config: config.yaml; empty where it can't be read.
        header: the first line of metrics.jsonl (`parameters`, `flops_per_token`, `peak_flops_per_second`, `device`...).
        steps: lines of metrics.jsonl on training, by increasing step; of repeated steps the last.
        end: the line that says how it ended.
        broken_lines: number of lines that are no JSON objects: a run that was killed may leave half a line.
        terms: those of the task that it fine-tuned for, which the reader has to set.
    """

    path: Path
    config: dict[str, Any] = field(default_factory=dict[str, Any])
    header: dict[str, Any] = field(default_factory=dict[str, Any])
    steps: list[Line] = field(default_factory=list[Line])
    evaluations: list[Line] = field(default_factory=list[Line])
    samples: list[Line] = field(default_factory=list[Line])
    end: Line | None = None
    broken_lines: int = 0
    terms: Terms = field(default_factory=Terms)

    def add(self, line: dict[str, Any]) -> None:
        """Take in a line of metrics.jsonl; a repeated step replaces all lines from it on."""
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
                for lines in (self.steps, self.evaluations, self.samples):
                    _drop(step, lines)
            self.steps.append(line)
        if "validation_loss" in line:
            _drop(step, self.evaluations)
            self.evaluations.append(line)
        if "sample" in line:
            self.samples.append(line)

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
    def state(self) -> str:
        """running, finished, stopped or diverged."""
        if self.end is not None and self.end["state"] in ("finished", "stopped", "diverged"):
            return self.end["state"]
        scores = (self.steps, "loss"), (self.evaluations, "validation_loss")
        if any(lines and number(lines[-1], name) is None for lines, name in scores):
            return "diverged"
        planned, done = number(self.config, "steps"), _last(self.steps).get("step", -1)
        if planned is not None and done >= planned and _last(self.evaluations).get("step", -1) >= done:
            return "finished"
        times = [seconds for line in self.steps if (seconds := number(line, "elapsed")) is not None]
        longest = max((after - before for before, after in pairwise(times)), default=0.0)
        return "running" if time.time() - self._modified < max(_QUIET, 5 * longest) else "stopped"

    @property
    def reason(self) -> str:
        """Why it ended, if it wrote so."""
        return str((self.end or {}).get("reason") or "")

    @property
    def begun(self) -> float:
        """When, in seconds since 1970."""
        try:
            return datetime.fromisoformat(str(self.header.get("started"))).timestamp()
        except (ValueError, OverflowError):
            return self._modified

    @property
    def _modified(self) -> float:
        for path in (self.path / METRICS, self.path):
            with contextlib.suppress(OSError):
                return path.stat().st_mtime
        return 0.0

    @property
    def parameters(self) -> int | None:
        """Weights of the model."""
        return _rounded(number(self.header, "parameters"))

    @property
    def trained_parameters(self) -> int | None:
        """Weights that are trained, those of an adapter among them."""
        return _rounded(number(self.header, "trained_parameters"))

    @property
    def tokens_per_step(self) -> float | None:
        """Tokens of a batch, padding included, on average over the run."""
        tokens, step = (number(_last(self.steps), name) for name in ("tokens", "step"))
        return tokens / step if tokens and step else None

    @property
    def step(self) -> int | None:
        """The latest step."""
        return max((int(line["step"]) for line in (*self.steps[-1:], *self.evaluations[-1:])), default=None)

    @property
    def tokens(self) -> int | None:
        """Tokens that it has been trained on."""
        counts = (number(line, "tokens") for line in reversed(self.steps))
        return _rounded(next((count for count in counts if count is not None), None))

    @property
    def seconds(self) -> float | None:
        """Duration of training."""
        times = [number(_last(lines), "elapsed") for lines in (self.steps, self.evaluations)]
        return max((seconds for seconds in times if seconds is not None), default=None)

    @property
    def training_times(self) -> list[tuple[float, float, float]]:
        """Step, tokens and seconds at each line on training, without the time of evaluations and checkpoints."""
        times: list[tuple[float, float, float]] = []
        tokens = seconds = 0.0
        for line in self.steps:
            total, speed = number(line, "tokens"), number(line, "tokens_per_second")
            if total is not None and speed:
                tokens, seconds = total, seconds + (total - tokens) / speed
                times.append((float(line["step"]), tokens, seconds))
        return times

    @property
    def tokens_per_second(self) -> float | None:
        """Mean speed of the training steps."""
        _, tokens, seconds = next(reversed(self.training_times), (0.0, 0.0, 0.0))
        return tokens / seconds if seconds > 0 else None

    @property
    def flops_per_second(self) -> float | None:
        """Mean floating-point operations a second."""
        values = [value for line in self.steps if (value := flops_per_second(self.header, line)) is not None]
        return sum(values) / len(values) if values else None

    @property
    def peak_share(self) -> float | None:
        """Share of the machine's measured peak that is reached."""
        peak, reached = number(self.header, "peak_flops_per_second"), self.flops_per_second
        return reached / peak if peak and reached is not None else None

    @property
    def validation_loss(self) -> float | None:
        """Loss of the latest evaluation, in nats per token where tokens are predicted."""
        return number(_last(self.evaluations), "validation_loss")

    @property
    def bits_per_byte(self) -> float | None:
        """Bits per byte of the latest evaluation."""
        return number(_last(self.evaluations), "bits_per_byte")

    @property
    def best(self) -> Line | None:
        """The evaluation with the lowest validation loss."""
        measured = [line for line in self.evaluations if number(line, "validation_loss") is not None]
        return min(measured, key=lambda line: line["validation_loss"], default=None)

    @property
    def best_validation_loss(self) -> float | None:
        """The lowest validation loss."""
        return None if self.best is None else self.best["validation_loss"]

    def summary(self) -> dict[str, Any]:
        """The run's figures, as values of JSON."""
        return {name: getattr(self, name) for name in _SUMMARY} | {"path": str(self.path)}


def number(line: Line, name: str) -> float | None:
    """The value of a field if it is a finite number, else None."""
    value = line.get(name)
    if isinstance(value, (float, int)) and not isinstance(value, bool) and -_LARGEST < value < _LARGEST:
        return float(value)
    return None


def flops_per_second(header: Line, line: Line) -> float | None:
    """FLOPs per second of a line on training, or else its tokens per second times the header's `flops_per_token`."""
    if (reached := number(line, "flops_per_second")) is not None:
        return reached
    each, speed = number(header, "flops_per_token"), number(line, "tokens_per_second")
    return None if each is None or speed is None else each * speed


def is_run(path: Path) -> bool:
    """Whether this is a run directory."""
    return (path / METRICS).exists() or (path / CONFIG).exists()


def read_run(path: Path) -> Run:
    """Read a run directory.

    Raises:
        UserError: there is none, it can't be read, or a file in it is a link out of it, or no file.
    """
    if not path.is_dir():
        siblings = path.parent.iterdir() if path.parent.is_dir() else ()
        hint = nearest(path.name, [each.name for each in siblings if is_run(each)])
        raise UserError(f"There is no run directory {path}{f' ({hint})' if hint.startswith('did') else ''}.")
    if not is_run(path):
        raise UserError(f"{path} is no run directory: it has neither {METRICS} nor {CONFIG}.")
    limits.check_files(path, (CONFIG, METRICS, EVALUATION))
    run = Run(path)
    # The run can be shown without its config; `anyformer train --config` is what complains about the file.
    with contextlib.suppress(UserError):
        values: Any = limits.read_yaml(path / CONFIG)
        run.config = {str(name): value for name, value in values.items()} if isinstance(values, dict) else {}
    for line in _lines(path / METRICS):
        if line is None:
            run.broken_lines += 1
        else:
            run.add(line)
    return run


def read_runs(directory: Path) -> list[Run]:
    """All runs in a directory, newest first; those that can't be read are named on standard error, and left out.

    Raises:
        UserError: there is no such directory, or no run in it that can be read.
    """
    if not directory.is_dir():
        raise UserError(f"There is no directory {directory}.")
    runs: list[Run] = []
    for path in sorted(directory.iterdir()):
        if path.is_dir() and is_run(path):
            try:
                runs.append(read_run(path))
            except UserError as error:
                terminal.message(error)
    if not runs:
        raise UserError(f"There are no runs in {directory}: `anyformer train` makes one.")
    return sorted(runs, key=lambda run: run.begun, reverse=True)


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested settings to dotted names: `{"model.attention.heads": 4}`."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(cast("Mapping[str, Any]", value), f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = cast("Any", value)
    return flat


def passages(line: Line) -> list[dict[str, str]]:
    """The passages of a line with a sample, as texts `before`, `written` and `after`: one, or a list of them."""
    sample: object = line.get("sample")
    texts: list[dict[str, str]] = []
    for each in cast("list[Any]", sample) if isinstance(sample, list) else [sample]:
        passage: Any = {"written": each} if isinstance(each, str) else each
        if isinstance(passage, Mapping):
            texts.append({part: str(passage.get(part) or "") for part in ("before", "written", "after")})
            # Runs often begin from a line break, which would only show as a gap.
            texts[-1]["before"] = texts[-1]["before"].lstrip("\n")
    return texts


def default_settings(preset: str | None, defaults: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a run that was given nothing but this preset, by dotted name.

    The model's settings are left out if there is no such preset; `defaults` are those of the others.
    """
    settings = dict(defaults)
    with contextlib.suppress(UserError):  # of another version, perhaps
        settings["model"] = find_preset(preset or "").to_dict()
    return {name: list(value) if isinstance(value, tuple) else value for name, value in flatten(settings).items()}


def differences(runs: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """The settings in which runs differ, by dotted name, with the value of each run (None: it has no such setting)."""
    settings = [flatten(each) for each in runs]
    names = dict.fromkeys(name for each in settings for name in each if name not in _LOCATION)
    rows = {name: [each.get(name) for each in settings] for name in names}
    return {name: values for name, values in rows.items() if any(value != values[0] for value in values)}


def _last(lines: Sequence[Line]) -> Line:
    return lines[-1] if lines else {}


def _rounded(value: float | None) -> int | None:
    return None if value is None else round(value)


def _drop(step: int, lines: list[Line]) -> None:
    """Remove the lines from a step on."""
    while lines and lines[-1]["step"] >= step:
        lines.pop()


def _lines(path: Path) -> Iterator[dict[str, Any] | None]:
    """The objects in a file of JSON lines, None for a line that is something else."""
    text = limits.read_bytes(path, limits.LOG_BYTES).decode("utf-8", errors="replace") if path.is_file() else ""
    for row in filter(str.strip, text.split("\n")):
        try:
            yield limits.parse_object(row, path)
        except UserError:
            yield None
