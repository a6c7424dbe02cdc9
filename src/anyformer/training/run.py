"""A training run, from its config to its directory."""

import shlex
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from typing_extensions import override

from anyformer.blocks.initialization import Cut
from anyformer.checkpoint import save
from anyformer.checkpoint.adapter_directory import find_adapter
from anyformer.console import Console
from anyformer.data.materialize import STANDARD_INPUT
from anyformer.errors import UserError
from anyformer.families.own import FAMILY as OWN_FAMILY
from anyformer.model import Transformer, build
from anyformer.quantization import parameter_count
from anyformer.runs.directory import RunDirectory
from anyformer.runs.tracking import Trackers
from anyformer.training.checkpoints import Checkpoints, read_facts
from anyformer.training.config import CompleteConfig, RunConfig, TrainConfig
from anyformer.training.config_file import settings, to_yaml
from anyformer.training.memory import explain_out_of_memory
from anyformer.training.prepare import TrainingData, prepare
from anyformer.training.recipe import Prepare, Recipe, cut_of, make_strategy, resolve
from anyformer.training.sample import Sample, take_sample
from anyformer.training.strategies.group import Group, join, started_by_launcher
from anyformer.training.trainer import Trainer


class Pretraining(Recipe[CompleteConfig]):
    """Training from scratch: a fresh model, text, and a tokenizer that is trained on it."""

    command = "train"
    config_type = TrainConfig

    def __init__(self, config: TrainConfig, console: Console) -> None:
        self.data: TrainingData = prepare(config.complete(), console)
        self.config, self.batches, self.fingerprint = self.data.config, self.data.batches, self.data.fingerprint
        self.model_config, self.name = self.config.model, self.config.preset

    @override
    def build(self, cut: Cut | None = None) -> Transformer:
        return build(self.model_config, cut)

    @override
    def summary(self) -> Sequence[str]:
        return self.data.summary

    @override
    def save(self, model: Transformer, directory: Path) -> str:
        own = save(model, directory, tokenizer=self.data.tokenizer) == OWN_FAMILY.model_type
        return "in our own format" if own else "a Hugging Face directory"

    @override
    def sample(self, model: Transformer) -> Sample:
        return take_sample(model, self.data.tokenizer, self.config, self.batches)


class Finished(NamedTuple):
    """The exit status of a run, 0 or 128 and the number of the signal that ended it early, and its directory."""

    status: int
    directory: Path


def run(
    config: RunConfig,
    recipe: Prepare = Pretraining,
    *,
    resume: Path | None = None,
    console: Console | None = None,
    started: float | None = None,
) -> Finished:
    """Train a model and leave it in a run directory.

    Args:
        resume: the run directory to go on in; None: a new one.
        console: shows progress; None: standard output.
        started: when the run began, on the monotonic clock; None: now.

    Raises:
        UserError: anything that the user can mend. A model that was saved stays as it was; a run that never began
            leaves no directory.
    """
    started = time.monotonic() if started is None else started
    if started_by_launcher() and STANDARD_INPUT in (*config.data, *config.validation):
        raise UserError("Several processes can't share standard input: write it to a file and give --data that.")
    with ExitStack() as stack:
        group = join(config.engine, config.device)
        stack.callback(group.close)
        console = (console or Console()) if group.is_main else Console(quiet=True)
        directory = stack.enter_context(_directory(config, resume, group))
        checkpoints = Checkpoints(directory.checkpoints, config.keep)
        if resume is not None and (facts := checkpoints.finished()) is not None:
            _say_finished(config, directory.path, facts, console)
            checkpoints.finish(group)  # it may have been killed before
            return Finished(0, directory.path)
        run = resolve(config, recipe, group, console)
        config = run.recipe.config
        latest = group.broadcast(checkpoints.latest())
        facts = None if latest is None else read_facts(latest, config, run.recipe.fingerprints, console)
        if facts is None or config.steps is None or facts["step"] < config.steps:
            directory.write_config(to_yaml(config))
        torch.manual_seed(config.seed)
        parallel = {name: getattr(config, name) for name in ("tensor_parallel", "context_parallel")}
        with explain_out_of_memory():
            model = run.recipe.build(cut_of(config.engine, run.plan, group, **parallel))
        trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
        strategy = make_strategy(config.engine, model, run.plan, group, zero_stage=config.zero_stage, **parallel)
        stack.callback(strategy.close)
        size = parameter_count(model)
        parameters = f"{size:,} parameters" + (f", {trained:,} of them trained" if trained < size else "")
        length = f"{config.steps:,} steps" if config.steps is not None else f"{config.minutes:g} minutes in all"
        for line in (
            f"model      {run.recipe.name}, {parameters}; {run.plan.precision}",
            f"engine     {strategy}, {run.compile_reason}",
            *run.recipe.summary(),
            f"run        {directory.path}: {length}",
        ):
            console.say(line)
        with explain_out_of_memory():
            run.recipe.prepare(strategy)
        if latest is not None:
            strategy.load(latest)
        if resume is not None:
            directory.rewind(-1 if facts is None else facts["step"])
            after = f"after step {facts['step']:,}" if facts else "from the beginning: no checkpoint yet"
            console.say(f"resumed    {after}")
        names, resumed = config.track if group.is_main else (), resume is not None
        trackers = Trackers(names, directory.path, settings(config), resumed=resumed, warn=console.say)
        stack.callback(trackers.close)
        status = Trainer(run, directory, strategy, trackers, console, facts, trained).run(started)
        return Finished(status, directory.path)


def _say_finished(config: RunConfig, path: Path, facts: Mapping[str, Any], console: Console) -> None:
    """Print how to go on from a run that has finished and removed its optimizer state.

    Raises UserError if it is asked for more steps.
    """
    run, merged = (shlex.quote(f"{path}{end}") for end in ("", "-merged"))
    commands = [f"anyformer finetune {run} --data FILE"]
    if find_adapter(path) is not None:
        commands = [f"anyformer convert {run} {merged}", f"anyformer finetune {merged} --data FILE"]
    state = f"This run has finished after step {facts['step']:,}, and its optimizer state is gone"
    more_steps = (config.steps or 0) > facts["step"] or getattr(config, "epochs", None)
    if more_steps or config.minutes not in (None, facts["config"].get("minutes")):
        raise UserError(
            f"{state}, so it takes no more steps. Train on from its model, by {' and '.join(commands)}; a run that is "
            "begun with --keep-optimizer can be given more steps."
        )
    console.say(f"{state}. Its model can be trained further:")
    for number, command in enumerate(commands):
        console.say(f"{'' if number else 'next':<11}{command}")


@contextmanager
def _directory(config: RunConfig, resume: Path | None, group: Group) -> Generator[RunDirectory]:
    """The run's directory, which the first process makes or enters, and removes again if no model has come into it."""
    own = None
    if group.is_main and resume is None:
        own = RunDirectory.create(config.runs, config.name, config.label)
    elif group.is_main and resume is not None:
        own = RunDirectory(resume)
        own.lock()
    path = group.broadcast(Path() if own is None else own.path)
    directory = own or RunDirectory(path, writes=False)
    try:
        yield directory
    finally:
        directory.unlock()
        if own is not None and resume is None and not directory.model.exists():
            directory.discard()
