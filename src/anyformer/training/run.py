"""A training run, from its config to its directory."""

from __future__ import annotations

import shutil
import time

from rich.console import Console

from anyformer.training.allocator import keep_freed_memory
from anyformer.training.config import TrainConfig, objective_name
from anyformer.training.config_file import to_yaml
from anyformer.training.precision import choose_precision
from anyformer.training.prepare import prepare
from anyformer.training.run_directory import RunDirectory
from anyformer.training.trainer import Trainer


def run(
    config: TrainConfig,
    given: frozenset[str] = frozenset(),
    *,
    console: Console | None = None,
    started: float | None = None,
) -> int:
    """Train a model and leave it in a run directory.

    Args:
        config: what to do.
        given: the fields of the model that the user has set, and that neither tokenizer nor context may change.
        console: where to show it; None: standard output.
        started: when the run began, on the monotonic clock; None: now.

    Returns:
        The exit status: 0, or 128 and the signal's number where a signal ended the run early.

    Raises:
        UserError: anything that the user can mend. A model that was saved stays as it was; a run that never began
            leaves no directory.
    """
    started = time.monotonic() if started is None else started
    console = Console() if console is None else console
    objective_name(config.model, config.preset)
    complete = config.complete(given)
    keep_freed_memory()
    precision = choose_precision(complete.device, complete.dtype)
    directory = RunDirectory.create(complete.runs, complete.name, complete.preset)
    tokens = directory.path / ".tokens"
    try:
        prepared = prepare(complete, given, tokens, console)
        trainer = Trainer(prepared, directory, precision, console)
        directory.write_config(to_yaml(prepared.config, device=precision.device.type, dtype=precision.name))
        return trainer.run(started)
    finally:
        shutil.rmtree(tokens, ignore_errors=True)
        if not directory.model.exists():
            directory.discard()
