"""Models of several families, trained on the same text within the same budget, and judged side by side."""

import os
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from anyformer import atomic
from anyformer import processes as programs
from anyformer.compare import jobs
from anyformer.compare.assemble import assemble
from anyformer.compare.budget import flops_per_token
from anyformer.compare.experiment import RESULT, Plan, default_folder, make_plan, seeds_of
from anyformer.compare.jobs import Job
from anyformer.compare.matching import parameters_outside_embeddings
from anyformer.compare.page import PAGE, write_page
from anyformer.compare.request import BATCH_SIZE, CONTEXT, SEEDS, Request, budget_of
from anyformer.compare.result import Comparison
from anyformer.compare.tasks import read_labeled_texts
from anyformer.data.disk_cache import Cache
from anyformer.data.examples.tables import Data, kept_paths
from anyformer.pages.formatting import clock
from anyformer.pages.render import require_page

Say = Callable[[str], None]
_WAIT = 0.5


def compare(
    contenders: Sequence[str],
    *,
    data: Data = (),
    out: str | os.PathLike[str] | None = None,
    vary: str | Sequence[str] = (),
    tokens: float | None = None,
    flops: float | None = None,
    minutes: float | None = None,
    seeds: int = SEEDS,
    match: str = "parameters",
    tune: bool = False,
    context: int = CONTEXT,
    batch_size: int = BATCH_SIZE,
    tokenizer: str | None = None,
    field: str = "text",
    tasks: bool = True,
    classify: Data = (),
    processes: int = 1,
    device: str | None = None,
    dtype: str | None = None,
) -> Comparison:
    """Train and judge models side by side, fairly: see docs/compare.md.

    What is finished in `out` is not done again, so a comparison that was stopped goes on by the same call.

    Args:
        contenders: presets, families (which are scaled down), config files, or finished runs, with fields changed:
            ``["gpt2", "llama:norm.kind=layer", "runs/llama-nano-1"]``.
        data: files, folders and globs of text, or rows, as `anyformer.finetune` takes them; empty: the standard library
            of Python.
        out: the folder to keep it in; None: one in ``comparisons``, the same for the same arguments.
        vary: fields of a single contender and their values, such as ``["norm.kind=layer,rms"]``.
        tokens, flops, minutes: what each contender may spend on each seed, one of them; None: half a million tokens.
        seeds: how many times each is trained.
        match: ``"parameters"`` outside embeddings, ``"flops"`` a token, or ``"none"``.
        tune: try three learning rates each, within the budget.
        context, batch_size: of the batches that all are trained on.
        tokenizer: kind and size of the one that is trained, such as ``"bpe:2048"``.
        field: of records that holds the text.
        tasks: do the tasks that every family can do.
        classify: files of texts with labels for the classifier among them, as `anyformer finetune` reads them; empty:
            passages of the text itself.
        processes: that share the work.
        device, dtype: of training.

    Returns:
        All numbers; they are in ``compare.json``, too, and on a page, ``compare.html``.

    Raises:
        UserError: contenders that can't be matched, a budget that is too small for one step, data that is too short,
            an unknown field, runs with different tokenizers or none, and what training raises.
    """
    request = Request(
        contenders=tuple(contenders),
        vary=(vary,) if isinstance(vary, str) else tuple(vary),
        data=kept_paths(data, Cache),
        field=field,
        tokenizer=tokenizer,
        match=match,
        budget=budget_of({"tokens": tokens, "flops": flops, "minutes": minutes}),
        seeds=seeds,
        tune=tune,
        context=context,
        batch_size=batch_size,
        tasks=tasks,
        classify=kept_paths(classify, Cache),
        device=device,
        dtype=dtype,
    )
    return work(request, None if out is None else Path(out), processes=processes)[0]


def work(
    request: Request,
    out: Path | None = None,
    *,
    processes: int = 1,
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
        jobs.StoppedError: a signal ended a run.
    """
    begun = time.monotonic()
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
    everything = jobs.all_jobs(plan)
    for job in everything:
        if job.contender.directory is None and not jobs.is_done(plan, job) and job.seed == 0:
            jobs.allow_job(plan, job)  # raises before anything is trained
    threads = torch.get_num_threads()
    helpers = _start_helpers(request, out, processes)
    try:
        if helpers:
            torch.set_num_threads(max(1, threads // processes))
        _work(plan, everything, processes, say, working)
    finally:
        for helper in helpers:
            helper.terminate()
        for helper in helpers:
            helper.wait()
        torch.set_num_threads(threads)
    working("drawing the page")
    comparison = assemble(plan, time.monotonic() - begun)
    comparison.write(out / RESULT)
    write_page(comparison, out / PAGE)
    return comparison, out


def _work(plan: Plan, everything: Sequence[Job], processes: int, say: Say, working: Say) -> None:
    taken: list[float] = []
    while left := [job for job in everything if not jobs.is_done(plan, job)]:
        moved = False
        for job in left:
            if jobs.is_done(plan, job) or not jobs.is_ready(plan, job):
                continue
            with jobs.claimed(plan, job) as mine:
                if mine and not jobs.is_done(plan, job):
                    begun, done = time.monotonic(), sum(jobs.is_done(plan, each) for each in everything)
                    rest = _rest(taken, len(everything) - done, processes)
                    working(f"{_name(job)} ({done + 1} of {len(everything)}){rest}")
                    jobs.perform(plan, job)
                    taken.append(time.monotonic() - begun)
                    loss = jobs.read(plan, job).validation_loss
                    found = "" if loss is None else f"validation loss {loss:.4f}, "
                    rest = _rest(taken, len(everything) - done - 1, processes)
                    say(f"{done + 1:>3}/{len(everything):<3}    {_name(job)}: {found}{taken[-1]:.0f} s{rest}")
                    moved = True
        if not moved:
            time.sleep(_WAIT)


def _name(job: Job) -> str:
    return f"{job.contender.name}, " + (f"seed {job.seed}" if job.rate is None else f"learning rate {job.rate:.2g}")


def _rest(taken: Sequence[float], left: int, processes: int) -> str:
    """How long as many more jobs may take."""
    return f", about {clock(statistics.mean(taken) * left / processes)} left" if taken and left else ""


def _start_helpers(request: Request, out: Path, processes: int) -> list[programs.Process]:
    """Start other processes that share the work; they say nothing."""
    changes = {"OMP_NUM_THREADS": str(max(1, torch.get_num_threads() // processes))}
    command = programs.python("-m", "anyformer", "compare", *request.arguments(str(out)))
    null = os.open(os.devnull, os.O_RDWR)
    try:
        return [
            programs.start(command, changes=changes, stdin=null, stdout=null, stderr=null) for _ in range(1, processes)
        ]
    finally:
        os.close(null)


def introduction(plan: Plan) -> list[str]:
    """Lines on what is going to be done."""
    text, request, count = plan.text, plan.request, seeds_of(plan)
    lines = [
        f"data       {len(text.training):,} tokens to train on, {len(text.held_out):,} held out; "
        f"a vocabulary of {text.tokenizer.vocab_size:,}",
        f"budget     {request.budget} for each of {count} seed{'s' * (count != 1)}",
        f"batches    {request.batch_size} windows of {text.window} tokens",
        f"folder     {plan.out}",
    ]
    for each in plan.contenders:
        size = parameters_outside_embeddings(each.config)
        cost = flops_per_token(each.config, text.window)
        lines.append(f"contender  {each.name}: {size:,} parameters outside embeddings, {cost:,.0f} FLOPs a token")
        lines += [f"           {note}" for note in each.notes]
    return lines
