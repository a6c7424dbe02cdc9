"""Checkpoints, from which a run goes on as if it had never stopped.

::

    checkpoints/step-00000500/state.safetensors   weights, the optimizer's state, averages (or parts of them)
                              run.json            the step, the log's running sums, the config
    checkpoints/finished.json                     run.json of the last step, when the run has finished by itself: it
                                                  stands in the place of all checkpoints

A checkpoint is written beside its place and renamed into it, so it is whole or absent whenever the power fails. That
happens in a thread while training goes on.
"""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable, Generator, Mapping
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from safetensors import SafetensorError

from anyformer import atomic, limits
from anyformer.console import Console
from anyformer.dtensor import local_tensor
from anyformer.errors import UserError, cut
from anyformer.runs.listing import flatten
from anyformer.schema import fits, fits_each
from anyformer.training.config import RunConfig
from anyformer.training.config_file import settings
from anyformer.training.memory import has_room

if TYPE_CHECKING:
    from torch import Tensor

    from anyformer.training.strategies.base import Strategy
    from anyformer.training.strategies.group import Group

T = TypeVar("T")

FACTS = "run.json"
FINISHED = "finished.json"

_FREE = {
    *("steps", "minutes", "log_every", "evaluate_every", "save_every", "keep", "keep_optimizer", "track", "workers"),
    *("cache", "max_record_bytes", "device", "dtype", "engine", "processes", "zero_stage", "compile"),
    *("tensor_parallel", "context_parallel"),
    *("grad_accumulation", "gradient_checkpointing"),
}
"""Settings that decide how long a run goes on and on what machine, not what is learned at a step."""
_FINGERPRINTED = {
    "fingerprint": "the data or the tokenizer",
    "base_fingerprint": "the model that it fine-tunes",
}
"""Subjects of the fingerprints in run.json."""
_PART = 1 << 26
"""Bytes that are written at a time, at most, unless one tensor has more."""


class Snapshot:
    """The tensors of a state as they are at one moment, written in parts while training goes on to change them.

    In the forward and the backward pass of a step nothing changes, so they are written from where they are. What is not
    written yet when the step is about to change them is copied; or training waits, where memory has no room for a copy.

    Args:
        state: live tensors, or this process's pieces of them, by name.
    """

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        self._parts: list[dict[str, Tensor]] = [{}]
        room = _PART
        for name, tensor in state.items():
            size = local_tensor(tensor).nbytes
            if size > room and self._parts[-1]:
                self._parts.append({})
                room = _PART
            self._parts[-1][name] = tensor
            room -= size
        self._several = len(self._parts) > 1
        self._lock, self._waits, self._safe = threading.Lock(), threading.Event(), threading.Event()

    def write(self, write: Callable[[dict[str, Tensor], str], T]) -> list[T]:
        """Write all parts, each with what tells its file from those of the others, and let go of them."""
        number, written = 0, list[T]()
        try:
            while True:
                if self._waits.is_set():  # or this thread would have the lock again before training gets it
                    self._safe.wait()
                with self._lock:
                    if not self._parts:
                        return written
                    number += 1
                    written.append(write(self._parts.pop(0), f"-{number:05}" if self._several else ""))
        finally:
            self._safe.set()

    def keep(self) -> None:
        """Return when the tensors may change: those that are not written yet have been copied."""
        if self._safe.is_set():
            return
        if not has_room(sum(local_tensor(tensor).nbytes for part in [*self._parts] for tensor in part.values())):
            self._safe.wait()
            return
        self._waits.set()
        with self._lock:
            for part in self._parts:
                for name, tensor in part.items():
                    part[name] = tensor.detach().to("cpu", copy=True)
            self._safe.set()


class Checkpoints:
    """The checkpoints of a run in its folder; all but the newest `keep` are removed once a newer one is complete."""

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder, self.keep = folder, keep
        self._writing: Future[None] | None = None

    def latest(self) -> Path | None:
        """The newest one that is complete. Raises UserError if it is a symbolic link."""
        latest = max(self._complete(), default=None)
        if latest is not None:
            limits.path_inside(self.folder, latest.name)
        return latest

    def save(self, strategy: Strategy, step: int, facts: Mapping[str, Any]) -> None:
        """Begin to write a checkpoint, on all processes; `wait`, or the next one, waits for its end.

        Raises:
            UserError: the disk refuses this one, or has refused the one before; older ones stay.
        """
        self.wait()
        path, group = self.folder / f"step-{step:08}", strategy.group
        if group.broadcast(path.exists()):
            return
        with ExitStack() as stack, _explained(path):
            made = stack.enter_context(atomic.temporary_folder(path)) if group.is_main else None
            folder = group.broadcast(made) or path
            snapshot = Snapshot(strategy.state())
            strategy.before_change = snapshot.keep
            text = json.dumps({"step": step, **facts})
            all_have_written = group.background
            temporary = stack.pop_all()  # removes the folder where it stays

        def write() -> None:
            """Write this process's share, and in process 0 put the folder into its place and remove older ones."""
            with temporary, _explained(path):
                for file in snapshot.write(partial(strategy.write, folder)):
                    if file is not None:
                        atomic.sync(file)
                all_have_written()
                if group.is_main:
                    (folder / FACTS).write_text(text, encoding="utf-8")
                    atomic.move(folder, path)
                    atomic.remove_abandoned(self.folder, age=0)
                    for old in sorted(self._complete())[: -self.keep]:
                        shutil.rmtree(old, ignore_errors=True)

        self._writing = _in_thread(write)

    def wait(self) -> None:
        """Wait until a checkpoint that is being written is there. Raises UserError where the disk refuses."""
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def finish(self, group: Group) -> None:
        """Leave only the facts of the newest checkpoint. Raises UserError where the disk refuses."""
        if group.is_main and (latest := self.latest()) is not None:
            facts = limits.read_object(limits.path_inside(latest, FACTS))
            atomic.write(self.folder / FINISHED, json.dumps(facts))
            for checkpoint in self._complete():
                shutil.rmtree(checkpoint, ignore_errors=True)
        group.any(False)

    def finished(self) -> Mapping[str, Any] | None:
        """Facts that `finish` left; None: the run has not finished, or keeps its checkpoints.

        Raises:
            UserError: it can't be read.
        """
        file = self.folder / FINISHED
        return _read(file, file) if file.exists() else None

    def _complete(self) -> list[Path]:
        return [path.parent for path in self.folder.glob(f"step-*/{FACTS}")]


@contextmanager
def _explained(path: Path) -> Generator[None]:
    """Raise UserError where the disk refuses a checkpoint."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"The checkpoint {path} can't be written: {reason}.") from error


def _in_thread(work: Callable[[], None]) -> Future[None]:
    """Work in a thread that ends with the program, whatever it is doing: what it leaves is a temporary folder."""
    future: Future[None] = Future()

    def run() -> None:
        try:
            work()
        except BaseException as error:  # raised by `result`
            future.set_exception(error)
        else:
            future.set_result(None)

    threading.Thread(target=run, name="checkpoint", daemon=True).start()
    return future


def read_facts(
    checkpoint: Path, config: RunConfig, fingerprints: Mapping[str, str | None], console: Console
) -> dict[str, Any]:
    """Read the facts of a checkpoint, and show what has changed since.

    Args:
        config: that of the run that goes on from it.
        fingerprints: those of that run's recipe, which may not have changed.

    Raises:
        UserError: it can't be read, or it would become another run.
    """
    facts = _read(checkpoint / FACTS, checkpoint)
    now = flatten(json.loads(json.dumps(settings(config))))
    # A checkpoint of an earlier version lacks the fields that models have got since.
    newer = {name: value for name, value in now.items() if name.startswith("model.")}
    before = newer | flatten(facts["config"])
    changes = {
        name: cut(f"{name.replace('_', '-')} {before.get(name)} -> {now.get(name)}")
        for name in sorted({*before, *now})
        if before.get(name) != now.get(name)
    }
    if forbidden := "; ".join(change for name, change in changes.items() if name not in _FREE):
        raise UserError(
            f"{checkpoint} can't be resumed with another config ({forbidden}): change it back, or begin a new run."
        )
    for name, fingerprint in fingerprints.items():
        if facts.get(name) != fingerprint:
            raise UserError(
                f"{checkpoint} can't be resumed: {_FINGERPRINTED[name]} has changed since. Put it back, or begin a new "
                "run."
            )
    for change in changes.values():
        console.say(f"changed    {change}")
    return facts


def _read(file: Path, checkpoint: Path) -> dict[str, Any]:
    """The facts in a run.json. Raises UserError where a field is not what it should be."""
    try:
        facts = limits.read_object(limits.path_inside(file.parent, file.name))
    except UserError as error:
        raise UserError(f"The checkpoint {checkpoint} can't be read: {error}") from error
    meter: Any = facts.get("meter")
    small = isinstance(meter, dict) and fits_each(meter, float) and all(abs(value) < 1e300 for value in meter.values())
    valid = {
        "step": (_is_at_least(0, facts.get("step")), "a whole number, 0 or more"),
        "every": (_is_at_least(1, facts.get("every")), "a whole number, 1 or more"),
        "threads": (_is_at_least(1, facts.get("threads", 1)), "a whole number, 1 or more"),
        "meter": (small, "an object of numbers"),
        "config": (isinstance(facts.get("config"), dict), "an object"),
    }
    for field, (holds, form) in valid.items():
        if not holds:
            raise UserError(f"The checkpoint {checkpoint} can't be read: {field} in {file.name} should be {form}.")
    return facts


def _is_at_least(least: int, value: Any) -> bool:
    return fits(value, int) and value >= least
