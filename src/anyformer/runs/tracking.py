"""`--track`: metrics to a tracker as well, while a run goes on.

Nothing leaves the machine unless the tracker that was asked for sends it: TensorBoard and trackio write files here, and
Weights & Biases sends the metrics, the samples and the config, or nothing where its `WANDB_MODE` says so.
"""

import contextlib
import io
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from textwrap import indent
from typing import Any, Protocol

from typing_extensions import override

from anyformer import atomic, limits
from anyformer.errors import UserError, library, nearest, quote
from anyformer.runs.listing import flatten, passages
from anyformer.terminal import message

PROJECT = "anyformer"
"""The project that runs are filed under, where the tracker's own environment variable names no other."""

_NAMES = {
    "loss": "training/loss",
    "learning_rate": "training/learning_rate",
    "gradient_norm": "training/gradient_norm",
    "tokens": "progress/tokens",
    "elapsed": "progress/elapsed",
    "tokens_per_second": "speed/tokens_per_second",
    "flops_per_second": "speed/flops_per_second",
    "validation_loss": "validation/loss",
    "bits_per_byte": "validation/bits_per_byte",
}
"""Names of the fields of metrics.jsonl in a tracker; other fields keep theirs."""


class Tracker(Protocol):
    """The interface of a tracker. One of your own is a class with these methods, and an entry in TRACKERS."""

    def log(self, step: int, numbers: Mapping[str, float], texts: Mapping[str, str]) -> None:
        """Take the numbers and texts of a step."""
        ...

    def close(self) -> None:
        """Write what is left."""
        ...


class TensorBoard(Tracker):
    """Event files in RUN/tensorboard, with texts as code: `tensorboard --logdir runs` shows all runs."""

    def __init__(self, directory: Path, config: Mapping[str, Any], resumed: bool) -> None:
        _library("tensorboard")
        module = _library("torch.utils.tensorboard")
        self._writer = module.SummaryWriter(str(directory / "tensorboard"), flush_secs=10)
        self.log(0, {}, {"config": "\n".join(f"{name}: {value}" for name, value in config.items())})

    @override
    def log(self, step: int, numbers: Mapping[str, float], texts: Mapping[str, str]) -> None:
        for name, value in numbers.items():
            self._writer.add_scalar(name, value, step)
        for name, text in texts.items():
            self._writer.add_text(name, indent(text, "    ", lambda line: True), step)

    @override
    def close(self) -> None:
        self._writer.close()


class WeightsAndBiases(Tracker):
    """A run of Weights & Biases. `WANDB_PROJECT`, `WANDB_ENTITY` and `WANDB_MODE` (online, offline) hold as always."""

    _SETTINGS: Mapping[str, Any] = {
        "finish_timeout": 120.0,
        "console": "off",
        "save_code": False,
        "x_save_requirements": False,
        **dict.fromkeys(("finish_timeout_raises", "quiet", "disable_git", "disable_job_creation"), True),
        **dict.fromkeys(("x_disable_meta", "x_disable_stats", "x_disable_machine_info"), True),
    }
    """Only metrics are sent: program, repository, machine and console stay here. The end of a run does not wait for a
    network that is down: what could not be sent lies in the run directory."""

    def __init__(self, directory: Path, config: Mapping[str, Any], resumed: bool) -> None:
        wandb = _library("wandb")
        folder = directory / "wandb"
        folder.mkdir(parents=True, exist_ok=True)
        id_file = folder / "run-id"
        same = {"id": limits.read_text(id_file), "resume": "allow"} if resumed and id_file.is_file() else {}
        settings = {name: value for name, value in self._SETTINGS.items() if name in wandb.Settings.model_fields}
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=directory.name,
            config=dict(config),
            dir=str(directory),
            settings=wandb.Settings(**settings),
            **same,
        )
        atomic.write(id_file, self._run.id)
        # Its own step only counts up, which that of a run taken up again does not.
        self._run.define_metric("*", step_metric="step")

    @override
    def log(self, step: int, numbers: Mapping[str, float], texts: Mapping[str, str]) -> None:
        self._run.log({**numbers, **texts, "step": step})

    @override
    def close(self) -> None:
        self._run.finish()


class Trackio(Tracker):
    """A run of trackio, on this machine: `trackio show --project anyformer`. `TRACKIO_DIR` says where."""

    def __init__(self, directory: Path, config: Mapping[str, Any], resumed: bool) -> None:
        self._library = _library("trackio")
        # It prints a few lines at both ends, which would tear the progress bar.
        with contextlib.redirect_stdout(io.StringIO()):
            self._run = self._library.init(
                project=os.environ.get("TRACKIO_PROJECT", PROJECT),
                name=directory.name,
                config=dict(config),
                resume="allow" if resumed else "never",
                **dict.fromkeys(("embed", "auto_log_gpu", "auto_log_cpu"), False),
            )

    @override
    def log(self, step: int, numbers: Mapping[str, float], texts: Mapping[str, str]) -> None:
        self._run.log({**numbers, **texts}, step=step)

    @override
    def close(self) -> None:
        with contextlib.redirect_stdout(io.StringIO()):
            self._library.finish()


TRACKERS: dict[str, Callable[[Path, Mapping[str, Any], bool], Tracker]] = {
    "tensorboard": TensorBoard,
    "trackio": Trackio,
    "wandb": WeightsAndBiases,
}
"""Factories of trackers. Arguments: the run directory, the run's settings by dotted name, and whether it is resumed, so
that what was tracked is continued."""


class Trackers:
    """The trackers of a run, as one. The first error of each is printed, and none stops training.

    Args:
        directory: where event files go; its name is the run's.
        config: the run's settings, as config.yaml has them.
        resumed: whether what was tracked is continued.

    Raises:
        UserError: a name is unknown, its library is not installed, or it can't begin (it wants a login, say).
    """

    def __init__(
        self,
        names: Sequence[str],
        directory: Path,
        config: Mapping[str, Any],
        *,
        resumed: bool = False,
        warn: Callable[[str], None] = lambda text: message(f"anyformer: {text}"),
    ) -> None:
        check(names)
        self._warn = warn
        self._failed: set[str] = set()
        self._open: dict[str, Tracker] = {}
        for name in dict.fromkeys(names):
            try:
                self._open[name] = TRACKERS[name](directory, flatten(config), resumed)
            except Exception as error:
                self.close()
                if isinstance(error, UserError):
                    raise
                hint = " WANDB_MODE=offline sends nothing." if name == "wandb" else ""
                raise UserError(f"--track {name} can't begin: {_sentence(error)}.{hint}") from error

    def log(self, record: Mapping[str, Any]) -> None:
        """Pass on a line of metrics.jsonl, but for its first, and for what is not a finite number."""
        step = record.get("step")
        if not isinstance(step, int) or "started" in record:
            return
        numbers = {
            _NAMES.get(name, name): float(value)
            for name, value in record.items()
            if name != "step" and isinstance(value, (int, float)) and math.isfinite(value)
        }
        sample = "\n\n".join("".join(passage.values()) for passage in passages(record))
        texts = {"sample": sample} if sample else {}
        if numbers or texts:
            for name, tracker in self._open.items():
                self._try(name, lambda tracker=tracker: tracker.log(step, numbers, texts))

    def close(self) -> None:
        """Write or send what is left."""
        while self._open:
            name, tracker = self._open.popitem()
            self._try(name, tracker.close)

    def _try(self, name: str, action: Callable[[], None]) -> None:
        try:
            action()
        except Exception as error:
            # Whatever a tracker's library raises, the run is worth more than its diary.
            if name not in self._failed:
                self._failed.add(name)
                self._warn(f"--track {name} fails, training goes on: {_sentence(error)}")


def check(names: Sequence[str]) -> None:
    """Raises UserError for a tracker that there is none of."""
    for name in names:
        if name not in TRACKERS:
            raise UserError(f"--track: there is no tracker {quote(name)} ({nearest(name, TRACKERS)}).")


def _library(name: str) -> Any:
    """A tracker's library. Raises UserError where it is not installed."""
    package = name.rpartition(".")[2]
    return library(name, f"--track {package}", "track", package)


def _sentence(error: Exception) -> str:
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__
