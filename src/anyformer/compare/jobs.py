"""The work of a comparison, in parts that several processes share and that a killed one takes up again.

::

    DIRECTORY/jobs/0-gpt2-seed1/            a run directory, see `anyformer.runs.directory`
                  0-gpt2-seed1.json         what came out: its presence says that the job is done
                  0-gpt2-rate0.002.json     of a learning rate that was tried
                  .0-gpt2-seed1.lock        held by the process that works on it
"""

import json
import shutil
import socket
import time
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock, Timeout

from anyformer import atomic, limits
from anyformer.checkpoint import load
from anyformer.compare.corpus import prepare, tokenizer_for
from anyformer.compare.experiment import DATA, JOBS, PLAN, RATES, TRIAL, Plan, stored_plan
from anyformer.compare.measure import Measures, measure
from anyformer.compare.result import ComparedModel, Curve, Point
from anyformer.compare.tasks import Task, make_tasks, read_labeled_texts, run_tasks
from anyformer.compare.training import Allowance, WindowTraining, allow, objective_of, run_config
from anyformer.console import Console
from anyformer.errors import UserError
from anyformer.runs.directory import CONFIG, model_directory
from anyformer.runs.listing import number, read_run
from anyformer.schema import make, to_plain
from anyformer.training.run import run
from anyformer.training.trainer import DivergedError

_TASK_WINDOW = 32
"""Tokens of a task's item, at most."""
_TASK_TOKENS = 1 << 20
"""Tokens of the training text, and of the held-out text, that tasks are made from."""


class StoppedError(Exception):
    """A signal ended a run early; the argument is the exit status."""

    @property
    def status(self) -> int:
        """The exit status."""
        return self.args[0]


@dataclass(frozen=True, kw_only=True)
class Outcome(Measures):
    """The outcome of a job; a trial measures nothing, and a model that was there already was not trained.

    Attributes:
        validation_loss: after training; None if it diverged.
        directory: of its run, relative to the comparison's.
    """

    learning_rate: float | None = None
    validation_loss: float | None = None
    allowance: Allowance | None = None
    curve: Curve | None = None
    seconds: float = 0.0
    directory: str = ""


@dataclass(frozen=True)
class Job:
    """A run of one model, or the measurement of one that is there already.

    Attributes:
        rate: the learning rate that is tried; None: the run counts.
    """

    plan: Plan
    index: int
    seed: int
    rate: float | None = None

    @property
    def model(self) -> ComparedModel:
        """The model that is trained."""
        return self.plan.models[self.index]

    @property
    def name(self) -> str:
        """Name of its run directory."""
        slug = "".join(c if c.isalnum() or c in "._=" else "-" for c in self.model.name)[:80]
        return f"{self.index}-{slug}-" + (f"seed{self.seed}" if self.rate is None else f"rate{self.rate:.4g}")

    @property
    def file(self) -> Path:
        """File of its outcome, which is there once it is done."""
        return self.plan.out / JOBS / f"{self.name}.json"

    def read(self) -> Outcome:
        """Read the outcome. Raises UserError where it is damaged."""
        try:
            return make(Outcome, limits.read_json(self.file), nulls=True)
        except UserError as error:
            raise UserError(f"{self.file} is damaged, and made anew once it is deleted: {error}") from error

    def learning_rate(self) -> float | None:
        """The one that it trains with: of those that were tried the best, or else the default."""
        if self.model.directory is not None or self.rate is not None:
            return self.rate
        trials = [job.read() for job in all_jobs(self.plan) if job.rate is not None and job.index == self.index]
        if not trials:
            return self.model.learning_rate
        return min(trials, key=lambda each: (each.validation_loss is None, each.validation_loss)).learning_rate

    def allowance(self) -> Allowance:
        """Steps that it may take: trials and runs together spend the budget. Raises UserError where it is too small."""
        plan, model = self.plan, self.model
        share = TRIAL if self.rate is not None else 1 - len(RATES) * TRIAL * plan.request.tune / plan.seeds
        budget, rows = plan.request.budget.share(share), plan.request.batch_size
        return allow(budget, model.config, plan.text, rows, self.seed, model.seconds_per_step)


def all_jobs(plan: Plan) -> list[Job]:
    """All jobs, in the order that they are to be done in: one of each kind of model early."""
    trials = [
        Job(plan, index, 0, rate * model.learning_rate)
        for index, model in enumerate(plan.models)
        for rate in RATES
        if plan.request.tune and model.directory is None
    ]
    return trials + [Job(plan, index, seed) for seed in range(plan.seeds) for index in range(len(plan.models))]


def run_job(out: str, name: str) -> float | None:
    """Do a job of the comparison in a directory, in whatever process, on any machine that sees the directory.

    Returns:
        Seconds that it took, next to nothing if it was done already; None if another process works on it.

    Raises:
        UserError: training diverged, the disk refuses, or the directory is not seen here.
        StoppedError: a signal ended it; it will be gone on with.
    """
    if not (Path(out) / PLAN).is_file():
        raise UserError(
            f"The worker on {socket.gethostname()} does not see the comparison in {out}: keep it, by --out, on a file "
            "system that all workers share."
        )
    plan = stored_plan(Path(out))
    job = next(each for each in all_jobs(plan) if each.name == name)
    (plan.out / JOBS).mkdir(exist_ok=True)
    try:
        with FileLock(plan.out / JOBS / f".{name}.lock", timeout=0):
            begun = time.monotonic()
            if not job.file.exists():
                atomic.write(job.file, json.dumps(to_plain(_perform(job)), allow_nan=False) + "\n")
            return time.monotonic() - begun
    except Timeout:
        return None


def _perform(job: Job) -> Outcome:
    plan, directory, rate = job.plan, job.model.directory, job.learning_rate()
    if directory is not None:
        return replace(_measured(job, directory), learning_rate=rate)
    directory, allowance = plan.out / JOBS / job.name, job.allowance()
    try:
        _train(job, directory, rate, allowance)
    except DivergedError:
        if job.rate is None:
            raise
        return Outcome(learning_rate=rate)
    curve = _curve(job, directory, allowance)
    if not curve.points:
        raise UserError(f"{directory} is damaged, and made anew once it is deleted: it has no validation loss.")
    last = curve.points[-1]
    return replace(
        _measured(job, directory),
        learning_rate=rate,
        validation_loss=last.validation_loss,
        allowance=allowance,
        curve=curve,
        seconds=last.seconds,
    )


def _train(job: Job, directory: Path, rate: float | None, allowance: Allowance) -> None:
    config = run_config(
        job.plan.request,
        job.model.config,
        job.model.name,
        allowance.steps,
        seed=job.seed,
        learning_rate=rate,
        name=directory.name,
        runs=directory.parent,
        tokenizer=str(job.plan.out / DATA / "tokenizer"),
    )
    begun = (directory / CONFIG).is_file()
    if directory.exists() and not begun:
        shutil.rmtree(directory, ignore_errors=True)  # it was killed before it wrote anything
    recipe = partial(WindowTraining, text=job.plan.text)
    finished = run(config, recipe, resume=directory if begun else None, console=Console(quiet=True))
    if finished.status:
        raise StoppedError(finished.status)


def _measured(job: Job, directory: Path) -> Outcome:
    plan = job.plan
    inside = directory.is_relative_to(plan.out)
    name = str(directory.relative_to(plan.out) if inside else directory)
    if job.rate is not None:
        return Outcome(directory=name)
    model, _ = load(model_directory(directory), torch.float32)
    tokenizer = tokenizer_for(plan.text.tokenizer, objective_of(job.model.config))
    measures = measure(model, tokenizer, plan.text)
    if plan.request.tasks:
        tasks = _tasks(plan.out, plan.text.context, plan.request.classify)
        measures = replace(measures, tasks=run_tasks(model, tokenizer, tasks))
    return Outcome(**vars(measures), directory=name)


@lru_cache(maxsize=1)
def _tasks(out: Path, context: int, classify: tuple[str, ...]) -> tuple[Task, ...]:
    """The tasks of a comparison: the same items for every model."""
    text = prepare(out / DATA, (), "text", context, None, None)
    training = text.texts(text.training.ids[:_TASK_TOKENS].astype(np.int64))
    held_out = text.texts(text.for_verdicts[:_TASK_TOKENS])
    labeled = read_labeled_texts(classify) if classify else None
    length = min(_TASK_WINDOW, text.window)
    return make_tasks(training, held_out, text.tokenizer, max_tokens=length, labeled=labeled)


def _curve(job: Job, directory: Path, allowance: Allowance) -> Curve:
    log = read_run(directory)
    logged, _, seconds = zip((0.0, 0.0, 0.0), *log.training_times, strict=True)
    points: list[Point] = []
    before = 0
    for line in log.evaluations:
        step = int(line["step"])
        losses = [number(each, "loss") for each in log.steps if before < each["step"] <= step]
        losses = [loss for loss in losses if loss is not None]
        points.append(
            Point(
                step=step,
                tokens=step * job.plan.request.batch_size * job.plan.text.window,
                flops=allowance.flops * step / allowance.steps,
                seconds=float(np.interp(step, logged, seconds)),
                training_loss=sum(losses) / len(losses) if losses else None,
                validation_loss=number(line, "validation_loss"),
                bits_per_byte=number(line, "bits_per_byte"),
            )
        )
        before = step
    return Curve(seed=job.seed, points=tuple(points))
