"""The result of a comparison, from what came out of its jobs."""

import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import fmean

import numpy as np
import torch

from anyformer.compare.experiment import JOBS, Plan
from anyformer.compare.jobs import Outcome, all_jobs
from anyformer.compare.measure import PANELS, members
from anyformer.compare.result import ComparedModel, Comparison, Panel, Setup, Trial
from anyformer.compare.tasks import TaskResult
from anyformer.compare.verdicts import Pieces, compare_members, effects
from anyformer.errors import UserError, cut
from anyformer.pages.formatting import listed

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
    results = {model: [run.tasks[name] for run in runs] for model, runs in outcomes.items()}
    first: TaskResult = next(iter(results.values()))[0]
    done = {model: all(each.items for each in runs) for model, runs in results.items()}
    reasons = {model: next((each.reason for each in runs if each.reason), None) for model, runs in results.items()}
    panel = Panel(
        name=name,
        title=name.replace("_", " ").capitalize(),
        measure="accuracy",
        lower_is_better=False,
        chance=first.chance,
        left_out={model: reasons[model] or "it was not done" for model in results if not done[model]},
    )
    return panel, {
        model: Pieces.of_items([each.items for each in runs]) for model, runs in results.items() if done[model]
    }


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
