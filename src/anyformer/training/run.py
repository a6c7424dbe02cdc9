"""A training run, from its config to its directory."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console

from anyformer.errors import UserError
from anyformer.model import Transformer, build
from anyformer.runs.directory import RunDirectory
from anyformer.runs.tracking import Trackers
from anyformer.runs.tracking import check as check_trackers
from anyformer.training.averaging import make_average
from anyformer.training.checkpoints import Checkpoints, read_facts
from anyformer.training.config import CompleteConfig, TrainConfig
from anyformer.training.config_file import settings, to_yaml
from anyformer.training.kernels import make_ready
from anyformer.training.memory import explain_out_of_memory, keep_freed_memory
from anyformer.training.optimizer import make_optimizer, supports_sharded
from anyformer.training.precision import Precision, choose_compilation, choose_precision
from anyformer.training.prepare import Prepared, keep_standard_input, prepare
from anyformer.training.progress import say
from anyformer.training.resume import check as check_unchanged
from anyformer.training.strategies.base import Plan
from anyformer.training.strategies.group import Group, join, started_by_launcher
from anyformer.training.strategies.single import make_strategy
from anyformer.training.trainer import Trainer


def run(
    config: TrainConfig,
    given: frozenset[str] = frozenset(),
    *,
    resume: Path | None = None,
    console: Console | None = None,
    started: float | None = None,
) -> int:
    """Train a model and leave it in a run directory.

    Args:
        config: what to do.
        given: the fields of the model that the user has set, and that neither tokenizer nor context may change.
        resume: the run directory to go on in; None: a new one.
        console: where to show it; None: standard output.
        started: when the run began, on the monotonic clock; None: now.

    Returns:
        The exit status: 0, or 128 and the signal's number where a signal ended the run early.

    Raises:
        UserError: anything that the user can mend. A model that was saved stays as it was; a run that never began
            leaves no directory.
    """
    started = time.monotonic() if started is None else started
    complete = config.complete(given)
    if started_by_launcher() and "-" in (*complete.data, *complete.validation):
        raise UserError("Several processes can't share standard input: write it to a file and give --data that.")
    complete = keep_standard_input(complete)
    make_average(complete.average)
    check_trackers(complete.track)
    supports_sharded(complete.optimizer, flattened=complete.engine == "deepspeed")
    keep_freed_memory()
    group = join(complete.engine, complete.device)
    try:
        shown = (Console() if console is None else console) if group.is_main else Console(quiet=True)
        directory = _directory(complete, resume, group)
        try:
            return _run(complete, given, directory, group, shown, started, resumed=resume is not None)
        finally:
            directory.unlock()
            if group.is_main and resume is None and not directory.model.exists():
                directory.discard()
    finally:
        group.close()


def _run(
    config: CompleteConfig,
    given: frozenset[str],
    directory: RunDirectory,
    group: Group,
    console: Console,
    started: float,
    *,
    resumed: bool,
) -> int:
    found = choose_precision(config.device, config.dtype, group.local_rank)
    dtype, reason = group.broadcast((found.dtype, found.reason))
    precision = replace(found, dtype=dtype, reason=reason)
    make_ready(precision)
    compiles, why = choose_compilation(config.compile, precision.device, spread=group.world_size > 1)
    if not resumed:
        # What is needed to begin again, should preparation be cut short.
        directory.write_config(to_yaml(config, given))
    prepared = group.main_first(lambda: prepare(config, given, console))
    config = replace(prepared.config, device=precision.device.type, dtype=precision.name)
    prepared = replace(prepared, config=config)
    latest = group.broadcast(Checkpoints(directory.checkpoints, config.keep).latest() if resumed else None)
    facts = None if latest is None else read_facts(latest)
    if latest is not None and facts is not None:
        check_unchanged(latest, facts, config, prepared.fingerprint, console)
    had_ended = facts is not None and config.steps is not None and facts["step"] >= config.steps
    if not had_ended:
        directory.write_config(to_yaml(config, None))
    torch.manual_seed(config.seed)
    with explain_out_of_memory():
        model = build(config.model)
    plan = Plan(
        precision=precision,
        optimizer=lambda model: make_optimizer(
            config.optimizer,
            model,
            config.learning_rate,
            weight_decay=config.weight_decay,
            betas=(0.9, config.beta2),
            dtype=precision.dtype,
        ),
        average=make_average(config.average),
        grad_clip=config.grad_clip,
        grad_accumulation=config.grad_accumulation,
        label_smoothing=config.label_smoothing,
        seed=config.seed,
        compile=compiles,
        gradient_checkpointing=config.gradient_checkpointing,
    )
    strategy = make_strategy(config.engine, model, plan, group, zero_stage=config.zero_stage)
    _introduce(console, prepared, model, directory, precision, f"{strategy}, {why}")
    if latest is not None:
        strategy.load(latest)
    if resumed:
        step = 0 if facts is None else facts["step"]
        directory.rewind(step if facts is not None else -1)
        say(console, f"resumed    after step {step:,}" if step else "resumed    from the beginning: no checkpoint yet")
    names = config.track if group.is_main else ()
    trackers = Trackers(names, directory.path, settings(config), resumed=resumed, warn=lambda text: say(console, text))
    try:
        return Trainer(prepared, directory, strategy, precision, trackers, console, facts).run(started)
    finally:
        trackers.close()
        strategy.close()


def _directory(config: CompleteConfig, resume: Path | None, group: Group) -> RunDirectory:
    """The run's directory, made or entered by the first process."""
    made = None
    if group.is_main and resume is None:
        made = RunDirectory.create(config.runs, config.name, config.preset)
    elif group.is_main and resume is not None:
        made = RunDirectory(resume)
        made.lock()
    path = group.broadcast(None if made is None else made.path)
    if made is not None:
        return made
    if path is None:
        raise ValueError("the first process has made no run directory")
    return RunDirectory(path, writes=False)


def _introduce(
    console: Console, prepared: Prepared, model: Transformer, directory: RunDirectory, precision: Precision, engine: str
) -> None:
    config = prepared.config
    size = sum(parameter.numel() for parameter in model.parameters())
    length = f"{config.steps:,} steps" if config.steps is not None else f"{config.minutes:g} minutes in all"
    say(console, f"model      {config.preset}, {size:,} parameters; {precision}")
    say(console, f"engine     {engine}")
    for line in prepared.summary():
        say(console, line)
    say(console, f"run        {directory.path}: {length}")
