"""Models of several families, trained on the same text within the same budget, and judged side by side."""

import os
import platform
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import Any, cast

import numpy as np
import torch

from anyformer import atomic
from anyformer.compare.experiment import JOBS, RESULT, Plan, default_folder, make_plan, stored_plan
from anyformer.compare.jobs import Job, Outcome, StoppedError, all_jobs, run_job
from anyformer.compare.measure import PANELS, members
from anyformer.compare.page import PAGE, write_page
from anyformer.compare.request import Request
from anyformer.compare.result import ComparedModel, Comparison, Panel, Setup, Trial
from anyformer.compare.tasks import read_labeled_texts
from anyformer.compare.verdicts import Pieces, compare_members, effects
from anyformer.data.disk_cache import Cache
from anyformer.data.examples.tables import Data, kept_paths
from anyformer.errors import UserError, check_keywords, cut
from anyformer.pages.formatting import clock, listed
from anyformer.pages.render import require_page
from anyformer.processes import InlineExecutor, ProcessExecutor
from anyformer.schema import hints, typed

Say = Callable[[str], None]
_WAIT = 0.5
"""Seconds until a job is submitted again that another command works on."""
_MOST_PROCESSES = 1024
_INTERRUPTED = 130
"""The exit status after Ctrl-C."""


def compare(
    models: Sequence[str | Path],
    *,
    data: Data = (),
    vary: str | Sequence[str] = (),
    classify: Data = (),
    out: str | os.PathLike[str] | None = None,
    processes: int = 1,
    executor: Executor | None = None,
    **settings: Any,
) -> Comparison:
    """Train and judge models side by side, fairly: see docs/compare.md.

    What is finished in `out` is not done again, so a comparison that was stopped goes on by the same call.

    Args:
        models: presets, families (which are scaled down), config files, or finished runs, with fields changed:
            ``["gpt2", "llama:norm.kind=layer", "runs/llama-nano-1"]``.
        data: files, folders and globs of text, or rows, as `anyformer.finetune` takes them; empty: the standard library
            of Python.
        vary: fields of a single model and their values, such as ``["norm.kind=layer,rms"]``.
        classify: files of texts with labels for the classifier among the tasks, as `anyformer finetune` reads them;
            empty: passages of the text itself.
        out: the folder to keep it in; None: one in ``comparisons``, the same for the same arguments.
        processes: that share the work.
        executor: where jobs are done, in the place of processes here: any of `concurrent.futures`' kind, whose workers
            see the folder under the same path.
        **settings: the other flags of `anyformer compare`, which are fields of `Request`: ``tokens=1e6``,
            ``flops=1e13`` or ``minutes=5`` is what each model may spend on each seed; ``seeds=5``, ``match="flops"``,
            ``tune=True``, ``tokenizer="bpe:2048"``, ``field="body"``, ``tasks=False``, ``context=256``,
            ``batch_size=16``, ``device="cpu"``, ``dtype="float32"``.

    Returns:
        All numbers; they are in ``compare.json``, too, and on a page, ``compare.html``.

    Raises:
        UserError: models that can't be matched, a budget that is too small for one step, data that is too short,
            an unknown field, a value of another type, runs with different tokenizers or none, and what training raises.
    """
    check_keywords("compare", settings, {*hints(Request), "out", "processes", "executor"})
    request = Request(
        models=_specs(models),
        vary=(vary,) if isinstance(vary, str) else tuple(vary),
        data=kept_paths(data, Cache),
        classify=kept_paths(classify, Cache),
        **typed(Request, settings, "compare: "),
    )
    return work(request, None if out is None else Path(out), processes=processes, executor=executor)[0]


def _specs(models: object) -> tuple[str, ...]:
    """Specifications of models. Raises UserError for a config, say, of which a comparison could not go on."""
    each = [models] if isinstance(models, str | Path) or not isinstance(models, Iterable) else list(models)
    for number, model in enumerate(cast("list[object]", each), start=1):
        if not isinstance(model, str | Path):
            raise UserError(
                f"models are presets, config files or runs, with fields changed such as 'gpt2:norm.kind=rms', and item "
                f"{number} is a {type(model).__name__}."
            )
    return tuple(map(str, each))


def work(
    request: Request,
    out: Path | None = None,
    *,
    processes: int = 1,
    executor: Executor | None = None,
    say: Say = lambda line: None,
    working: Say = lambda line: None,
) -> tuple[Comparison, Path]:
    """Do all that is left to do of a comparison, beside other processes that do the same.

    Args:
        say: called with lines for people.
        working: called with what is being done, for a line that is rewritten.

    Returns:
        The result, and the folder that it is in.

    Raises:
        UserError: as `compare`.
        StoppedError: a signal ended a run.
    """
    begun = time.monotonic()
    if not 1 <= processes <= _MOST_PROCESSES:
        raise UserError(f"--processes {processes} must lie between 1 and {_MOST_PROCESSES}.")
    if out is None:
        out = default_folder(request)
        atomic.refuse_link(out)  # nobody has asked for what it leads to
    atomic.refuse_link(out / PAGE)
    require_page(out / PAGE)  # before hours of work
    if request.classify:
        read_labeled_texts(request.classify)
    working("reading the data, and training a tokenizer for all")
    plan = make_plan(request, out)
    for line in introduction(plan):
        say(line)
    stored_plan.cache_clear()
    own = (
        ProcessExecutor(processes, max(1, torch.get_num_threads() // processes)) if processes > 1 else InlineExecutor()
    )
    with own if executor is None else nullcontext(executor) as chosen:
        jobs = all_jobs(plan)
        left = [job for job in jobs if not job.file.exists()]
        progress = _Progress(len(jobs), len(jobs) - len(left), say, working, processes)
        # Learning rates are tried before the runs that take the best of them.
        for wave in ([job for job in left if job.rate is not None], [job for job in left if job.rate is None]):
            _work(wave, chosen, len(wave) if executor else processes, progress)
    working("drawing the page")
    comparison = assemble(plan, time.monotonic() - begun)
    comparison.write(out / RESULT)
    write_page(comparison, out / PAGE)
    return comparison, out


@dataclass
class _Progress:
    total: int
    done: int
    say: Say
    working: Say
    processes: int
    seconds: list[float] = field(default_factory=list[float])
    """Durations of the jobs that were done."""

    def begin(self, job: Job, running: int) -> None:
        self.working(f"{_name(job)} ({self.done + running + 1} of {self.total}){self._rest()}")

    def end(self, job: Job, seconds: float) -> None:
        self.done += 1
        self.seconds.append(seconds)
        loss = job.read().validation_loss
        shown = "" if loss is None else f"validation loss {loss:.4f}, "
        self.say(f"{self.done:>3}/{self.total:<3}    {_name(job)}: {shown}{seconds:.0f} s{self._rest()}")

    def _rest(self) -> str:
        left = self.total - self.done
        if not (self.seconds and left):
            return ""
        return f", about {clock(fmean(self.seconds) * left / self.processes)} left"


def _work(wave: Sequence[Job], executor: Executor, most: int, progress: _Progress) -> None:
    """Have jobs done, at most so many at a time; one that another command works on is submitted again."""
    left, running = deque(wave), dict[Future[float | None], Job]()
    try:
        while left or running:
            if left and len(running) < most:
                job = left.popleft()
                progress.begin(job, len(running))
                running[executor.submit(run_job, str(job.plan.out), job.name)] = job
                continue
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                job, seconds = running.pop(future), future.result()
                if seconds is None:
                    left.append(job)
                    time.sleep(_WAIT)
                else:
                    progress.end(job, seconds)
    except KeyboardInterrupt:
        raise StoppedError(_INTERRUPTED) from None
    except ChildProcessError as error:
        raise UserError(f"The comparison stopped: {error}. The same command goes on with it.") from error


def _name(job: Job) -> str:
    return f"{job.model.name}, " + (f"seed {job.seed}" if job.rate is None else f"learning rate {job.rate:.2g}")


def introduction(plan: Plan) -> list[str]:
    """Lines on what is going to be done."""
    text, request = plan.text, plan.request
    lines = [
        f"data       {len(text.training):,} tokens to train on, {len(text.held_out):,} held out; "
        f"a vocabulary of {text.tokenizer.vocab_size:,}",
        f"budget     {request.budget} for each of {plan.seeds} seed{'s' * (plan.seeds != 1)}",
        f"batches    {request.batch_size} windows of {text.window} tokens",
        f"folder     {plan.out}",
    ]
    for each in plan.models:
        size, cost = each.parameters_outside_embeddings, each.flops_per_token
        lines.append(f"model      {each.name}: {size:,} parameters outside embeddings, {cost:,.0f} FLOPs a token")
        lines += [f"           {note}" for note in each.notes]
    return lines


Outcomes = Mapping[str, Sequence[Outcome]]
"""Outcomes of the runs of each model, by its name."""


def assemble(plan: Plan, seconds: float) -> Comparison:
    """The result of a comparison whose jobs are all done."""
    outcomes: dict[str, list[Outcome]] = {each.name: [] for each in plan.models}
    trials: dict[str, list[Trial]] = {each.name: [] for each in plan.models}
    for job in all_jobs(plan):
        outcome = job.read()
        if job.rate is None:
            outcomes[job.model.name].append(outcome)
        else:
            trial = Trial(learning_rate=job.rate, validation_loss=outcome.validation_loss)
            trials[job.model.name].append(trial)
    _check(plan, outcomes)
    groups = [_group(plan, panel, outcomes) for panel in PANELS]
    names = dict.fromkeys(name for runs in outcomes.values() for name in runs[0].tasks)
    tasks = [_task(name, outcomes) for name in names]
    judged = [(*compare_members(panel, numbers), numbers) for panel, numbers in groups + tasks]
    panels = [panel for panel, _, _ in judged]
    ablation = plan.ablation and effects(plan.ablation, [(panel, numbers) for panel, _, numbers in judged])
    return Comparison(
        title=listed([*outcomes]) if ablation is None else f"changes to {ablation.base}",
        repeat=plan.request.command(str(plan.out)),
        setup=_setup(plan, seconds),
        models=tuple(_trained(plan, each, outcomes[each.name], trials[each.name]) for each in plan.models),
        groups=tuple(panel for panel in panels[: len(groups)] if panel.scores),
        tasks=tuple(_with_parts(panel, outcomes) for panel in panels[len(groups) :]),
        verdicts=tuple(verdict for _, verdicts, _ in judged for verdict in verdicts),
        ablation=ablation,
    )


def _check(plan: Plan, outcomes: Outcomes) -> None:
    """Raise UserError for runs that were not measured on the same pieces and items."""
    sizes: dict[object, object] = {}
    for each in plan.models:
        for run in outcomes[each.name]:
            facts: dict[object, object] = {"tasks": {*run.tasks}, (each.name, "groups"): {*run.numbers}}
            facts |= {name: numbers.weights for name, numbers in run.numbers.items()}
            for name, task in run.tasks.items():
                facts |= {(name, "items"): len(task.items)} if task.items else {}
                facts[each.name, name] = {*task.parts}, {*task.controls}
            if not members(each.config, each.objective) <= {*run.numbers} or any(
                sizes.setdefault(name, fact) != fact for name, fact in facts.items()
            ):
                raise UserError(
                    f"{plan.out / JOBS} has numbers of {cut(each.name)} that are not of the same pieces as the others: "
                    "delete them to have them made anew."
                )


def _group(plan: Plan, panel: Panel, outcomes: Outcomes) -> tuple[Panel, dict[str, Pieces]]:
    numbers: dict[str, Pieces] = {}
    left_out: dict[str, str] = {}
    for each in plan.models:
        if panel.name in members(each.config, each.objective):
            runs = [outcome.numbers[panel.name] for outcome in outcomes[each.name]]
            numbers[each.name] = Pieces(np.array([run.totals for run in runs]), np.array(runs[0].weights))
        else:
            left_out[each.name] = _why(panel.name, each.config.is_encoder_only)
    return replace(panel, left_out=left_out), numbers


def _why(panel: str, is_encoder: bool) -> str:
    if panel == "filling_in":
        return "it was not trained to fill in masked words"
    if panel == "spans":
        return "it was not trained to restore spans"
    if panel == "next_byte" and not is_encoder:
        return "it reads a beginning first, so it is measured on the rest of a text"
    return "it gives no probability of a text" if is_encoder else "it was not trained to continue texts"


def _task(name: str, outcomes: Outcomes) -> tuple[Panel, dict[str, Pieces]]:
    numbers: dict[str, Pieces] = {}
    left_out: dict[str, str] = {}
    for model, runs in outcomes.items():
        results = [run.tasks[name] for run in runs]
        if all(each.items for each in results):
            numbers[model] = Pieces.of_items([each.items for each in results])
        else:
            left_out[model] = next((each.reason for each in results if each.reason), "it was not done")
    panel = Panel(
        name=name,
        title=name.replace("_", " ").capitalize(),
        measure="accuracy",
        lower_is_better=False,
        chance=next(iter(outcomes.values()))[0].tasks[name].chance,
        left_out=left_out,
    )
    return panel, numbers


def _with_parts(panel: Panel, outcomes: Outcomes) -> Panel:
    """A task with the parts and controls of each score, as means over seeds."""
    scores = []
    for score in panel.scores:
        results = [run.tasks[panel.name] for run in outcomes[score.model]]
        parts = {name: fmean(each.parts[name] for each in results) for name in results[0].parts}
        controls = {name: float(np.mean([each.controls[name] for each in results])) for name in results[0].controls}
        scores.append(replace(score, parts=parts, controls=controls))
    return replace(panel, scores=tuple(scores))


def _trained(plan: Plan, model: ComparedModel, runs: Sequence[Outcome], trials: Sequence[Trial]) -> ComparedModel:
    text = plan.text.training
    spent = [run.allowance for run in runs if run.allowance is not None]
    tokens = round(fmean(each.tokens for each in spent)) if spent else 0
    seconds = fmean(run.seconds for run in runs)
    return replace(
        model,
        learning_rate=runs[0].learning_rate or 0.0,
        trials=tuple(trials),
        steps=round(fmean(each.steps for each in spent)) if spent else 0,
        tokens=tokens,
        flops=fmean(each.flops for each in spent) if spent else 0.0,
        bytes=round(tokens * text.header.bytes / max(1, len(text))),
        order_digest=tuple(each.digest for each in spent),
        seconds=seconds,
        tokens_per_second=tokens / seconds if seconds else 0.0,
        runs=tuple(run.directory for run in runs),
        curves=tuple(run.curve for run in runs if run.curve is not None),
        samples=runs[0].samples,
        blanks=runs[0].blanks,
    )


def _setup(plan: Plan, seconds: float) -> Setup:
    text, request = plan.text, plan.request
    training, held_out = text.training.header, text.held_out.header
    size = "flops_per_token" if request.match == "flops" else "parameters_outside_embeddings"
    return Setup(
        data=request.data,
        training_bytes=training.bytes,
        held_out_bytes=held_out.bytes,
        training_tokens=training.tokens,
        held_out_tokens=held_out.tokens,
        data_digest=training.digest,
        tokenizer=request.tokenizer or f"bpe:{text.tokenizer.vocab_size}",
        vocab_size=text.tokenizer.vocab_size,
        context=text.context,
        window=text.window,
        batch_size=request.batch_size,
        match=request.match,
        matched={each.name: float(getattr(each, size)) for each in plan.models},
        budget=request.budget.kind,
        amount=request.budget.amount,
        seeds=plan.seeds,
        tuned=request.tune,
        machine=f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}",
        seconds=seconds,
    )
