"""The work of a comparison, in parts that several processes share and that a killed one takes up again.

::

    DIRECTORY/jobs/0-gpt2-seed1/            a run directory, see `anyformer.runs.directory`
                  0-gpt2-seed1.json         what came out: its presence says that the job is done
                  0-gpt2-rate0.002.json     of a learning rate that was tried
                  .0-gpt2-seed1.lock        held by the process that works on it
"""

import json
import math
import shutil
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock, Timeout

from anyformer import atomic, limits
from anyformer.checkpoint import load
from anyformer.compare.budget import TRIAL, Allowance, allow
from anyformer.compare.corpus import prepare, tokenizer_for
from anyformer.compare.experiment import DATA, JOBS, Plan, seeds_of, stored_plan
from anyformer.compare.matching import Candidate
from anyformer.compare.measure import measure
from anyformer.compare.result import Blank, Curve, Point, Sample
from anyformer.compare.tasks import Task, TaskResult, make_tasks, read_labeled_texts, run_tasks
from anyformer.compare.training import ContenderTraining, objective_of, run_config, training_batches, windows
from anyformer.console import Console
from anyformer.errors import UserError
from anyformer.runs.directory import CONFIG, model_directory
from anyformer.runs.listing import number, read_run
from anyformer.schema import make, to_plain
from anyformer.training.run import run
from anyformer.training.trainer import DivergedError

RATES = (0.5, 1.0, 2.0)
"""Learning rates that are tried, as multiples of the default."""
_TASK_WINDOW = 32
"""Tokens of a task's item, at most."""
_TASK_TOKENS = 1 << 20
"""Tokens of the training text, and of the held-out text, that tasks are made from."""


_LARGEST = 1e100
"""A sum of numbers below it can be squared."""


class StoppedError(Exception):
    """A signal ended a run early.

    Attributes:
        status: the exit status.
    """

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


@dataclass(frozen=True)
class Job:
    """A run of one contender, or what is found out about one that is there already.

    Attributes:
        rate: the learning rate that is tried; None: the run counts.
    """

    number: int
    contender: Candidate
    seed: int
    rate: float | None = None

    @property
    def name(self) -> str:
        """Name of its run directory."""
        slug = "".join(c if c.isalnum() or c in "._=" else "-" for c in self.contender.name)[:80]
        return f"{self.number}-{slug}-" + (f"seed{self.seed}" if self.rate is None else f"rate{self.rate:.4g}")


@dataclass(frozen=True, kw_only=True)
class Numbers:
    """The numbers of one run in one group, as `Pieces` of one seed."""

    totals: tuple[float, ...]
    weights: tuple[float, ...]

    def __post_init__(self) -> None:
        sums = math.fsum(map(abs, self.totals)), math.fsum(map(abs, self.weights))
        if len(self.totals) != len(self.weights) or not (sums[0] < _LARGEST and 0 < sums[1] < _LARGEST):
            raise UserError("numbers: wants as many totals as weights, all of them finite.")


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The outcome of a job.

    Attributes:
        learning_rate: of the run; None of one that was there already.
        validation_loss: after training; None of one that was there already, or that diverged.
        allowance: what it spent; None of a model that was there already.
        curve: of its training.
        seconds: of its training.
        numbers: of the model, by group; empty of a trial.
        samples, blanks, tasks: likewise.
        directory: of its run, relative to the comparison's.
    """

    learning_rate: float | None = None
    validation_loss: float | None = None
    allowance: Allowance | None = None
    curve: Curve | None = None
    seconds: float = 0.0
    numbers: dict[str, Numbers] = field(default_factory=dict[str, Numbers])
    samples: tuple[Sample, ...] = ()
    blanks: tuple[Blank, ...] = ()
    tasks: dict[str, TaskResult] = field(default_factory=dict[str, TaskResult])
    directory: str = ""


def all_jobs(plan: Plan) -> list[Job]:
    """All jobs, in the order that they are to be done in: a contender of each kind early."""
    numbered = list(enumerate(plan.contenders))
    trials = [
        Job(number, each, 0, rate * each.learning_rate)
        for number, each in numbered
        for rate in RATES
        if plan.request.tune and each.directory is None
    ]
    return trials + [Job(number, each, seed) for seed in range(seeds_of(plan)) for number, each in numbered]


def trials_of(plan: Plan, job: Job) -> list[Job]:
    """The jobs that decide on a job's learning rate."""
    return [each for each in all_jobs(plan) if each.rate is not None and each.number == job.number]


def is_done(plan: Plan, job: Job) -> bool:
    """Whether a job is finished."""
    return _file(plan, job).exists()


@contextmanager
def claimed(plan: Plan, job: Job) -> Generator[bool]:
    """Keep a job to this process; yields False where another one has it."""
    (plan.out / JOBS).mkdir(exist_ok=True)
    lock = FileLock(plan.out / JOBS / f".{job.name}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


def run_job(out: str, name: str) -> float | None:
    """Do a job of the comparison in a directory, in whatever process, on any machine that sees the directory.

    Returns:
        Seconds that it took, next to nothing if it was done already; None if another process works on it.

    Raises:
        UserError, StoppedError: as `perform`.
    """
    plan = stored_plan(Path(out))
    job = next(each for each in all_jobs(plan) if each.name == name)
    with claimed(plan, job) as mine:
        if not mine:
            return None
        begun = time.monotonic()
        if not is_done(plan, job):
            perform(plan, job)
        return time.monotonic() - begun


def perform(plan: Plan, job: Job) -> None:
    """Do a job, or the rest of it.

    Raises:
        UserError: training diverged, the disk refuses.
        StoppedError: a signal ended it; it will be gone on with.
    """
    directory = plan.out / JOBS / job.name
    rate = learning_rate(plan, job)
    outcome = Outcome(learning_rate=rate)
    if job.contender.directory is not None:
        directory = job.contender.directory
    else:
        allowed = allow_job(plan, job)
        try:
            _train(plan, job, directory, rate, allowed)
        except DivergedError:
            if job.rate is None:
                raise
            _write(plan, job, outcome)
            return
        curve = _curve(plan, job, directory, allowed)
        if not curve.points:
            raise UserError(f"{directory} is damaged, and made anew once it is deleted: it has no validation loss.")
        last = curve.points[-1]
        outcome = replace(
            outcome, validation_loss=last.validation_loss, allowance=allowed, curve=curve, seconds=last.seconds
        )
    outcome = replace(outcome, directory=_relative(directory, plan.out))
    _write(plan, job, outcome if job.rate is not None else _measured(plan, job, directory, outcome))


def learning_rate(plan: Plan, job: Job) -> float | None:
    """The one that a job trains with: of those that were tried the best, or else the default."""
    if job.contender.directory is not None:
        return None
    if job.rate is not None:
        return job.rate
    tried = [read(plan, each) for each in trials_of(plan, job)]
    losses = [math.inf if each.validation_loss is None else each.validation_loss for each in tried]
    return tried[losses.index(min(losses))].learning_rate if tried else job.contender.learning_rate


def allow_job(plan: Plan, job: Job) -> Allowance:
    """Steps that a job may take: trials and runs together spend the budget. Raises UserError where it is too small."""
    tune = plan.request.tune
    budget = plan.request.budget.share(
        TRIAL if job.rate is not None else 1 - len(RATES) * TRIAL * tune / seeds_of(plan)
    )
    batches = training_batches(job.contender.config, plan.text, plan.request.batch_size, job.seed)
    made = windows(job.contender.config, plan.text)
    return allow(budget, job.contender.config, batches, made, job.contender.seconds)


def read(plan: Plan, job: Job) -> Outcome:
    """The outcome of a job that is done. Raises UserError where it is damaged."""
    path = _file(plan, job)
    try:
        return make(Outcome, limits.read_json(path), nulls=True)
    except UserError as error:
        raise UserError(f"{path} is damaged, and made anew once it is deleted: {error}") from error


def _train(plan: Plan, job: Job, directory: Path, rate: float | None, allowed: Allowance) -> None:
    request = plan.request
    config = run_config(
        request,
        job.contender.config,
        job.contender.name,
        steps=allowed.steps,
        seed=job.seed,
        learning_rate=rate,
        name=directory.name,
        runs=directory.parent,
        tokenizer=plan.out / DATA / "tokenizer",
    )
    begun = (directory / CONFIG).is_file()
    if directory.exists() and not begun:
        shutil.rmtree(directory, ignore_errors=True)  # it was killed before it wrote anything
    recipe = partial(ContenderTraining, text=plan.text)
    finished = run(config, recipe, resume=directory if begun else None, console=Console(quiet=True))
    if finished.status:
        raise StoppedError(finished.status)


def _measured(plan: Plan, job: Job, directory: Path, outcome: Outcome) -> Outcome:
    """With the numbers of a model that is trained."""
    model, _ = load(model_directory(directory), torch.float32)
    objective = objective_of(job.contender.config)
    text = plan.text
    found = measure(model, tokenizer_for(text.tokenizer, objective), text)
    tasks: dict[str, TaskResult] = {}
    if plan.request.tasks:
        tasks = run_tasks(
            model, tokenizer_for(text.tokenizer, objective), _tasks(plan.out, text.context, plan.request.classify)
        )
    numbers = {
        name: Numbers(totals=tuple(each.totals[0].tolist()), weights=tuple(each.weights.tolist()))
        for name, each in found.pieces.items()
    }
    return replace(outcome, numbers=numbers, samples=tuple(found.samples), blanks=tuple(found.blanks), tasks=tasks)


@lru_cache(maxsize=1)
def _tasks(out: Path, context: int, classify: tuple[str, ...]) -> tuple[Task, ...]:
    """The tasks of a comparison: the same items for every model."""
    text = prepare(out / DATA, (), "text", context, None, None)
    training = text.texts(text.training.ids[:_TASK_TOKENS].astype(np.int64))
    held_out = text.texts(text.for_verdicts[:_TASK_TOKENS])
    labeled = read_labeled_texts(classify) if classify else None
    length = min(_TASK_WINDOW, text.window)
    return make_tasks(training, held_out, text.tokenizer, max_tokens=length, labeled=labeled)


def _curve(plan: Plan, job: Job, directory: Path, allowed: Allowance) -> Curve:
    log = read_run(directory)
    logged, _, seconds = zip((0.0, 0.0, 0.0), *log.training_times, strict=True)
    points: list[Point] = []
    before = 0
    for line in log.evaluations:
        step = int(line["step"])
        known = [number(each, "loss") for each in log.steps if before < each["step"] <= step]
        losses = [loss for loss in known if loss is not None]
        points.append(
            Point(
                step=step,
                tokens=step * plan.request.batch_size * plan.text.window,
                flops=allowed.flops * step / allowed.steps,
                seconds=float(np.interp(step, logged, seconds)),
                training_loss=sum(losses) / len(losses) if losses else None,
                validation_loss=number(line, "validation_loss"),
                bits_per_byte=number(line, "bits_per_byte"),
            )
        )
        before = step
    return Curve(seed=job.seed, points=tuple(points))


def _write(plan: Plan, job: Job, outcome: Outcome) -> None:
    atomic.write(_file(plan, job), json.dumps(to_plain(outcome), allow_nan=False) + "\n")


def _file(plan: Plan, job: Job) -> Path:
    return plan.out / JOBS / f"{job.name}.json"


def _relative(path: Path, folder: Path) -> str:
    return str(path.relative_to(folder)) if path.is_relative_to(folder) else str(path)
