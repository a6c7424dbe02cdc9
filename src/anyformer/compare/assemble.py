"""The result of a comparison, from what came out of its jobs."""

import json
import os
import platform
from dataclasses import replace

import numpy as np
import torch

from anyformer.analysis import cache_bytes_per_token
from anyformer.compare import jobs
from anyformer.compare.budget import flops_per_token
from anyformer.compare.experiment import JOBS, Plan, parameters, seeds_of
from anyformer.compare.jobs import Outcome
from anyformer.compare.matching import parameters_outside_embeddings
from anyformer.compare.measure import PANELS, members
from anyformer.compare.result import Comparison, ContenderResult, Panel, Score, Setup, Trial, Verdict
from anyformer.compare.statistics import Pieces
from anyformer.compare.tasks import TaskResult
from anyformer.compare.training import objective_of
from anyformer.compare.verdicts import effects, judge
from anyformer.errors import UserError, cut
from anyformer.pages.formatting import listed

_BYTES_A_PARAMETER = 16
"""Bytes of a weight, its gradient and AdamW's two averages in float32."""
_OBJECTIVES = {
    "causal": "predict the next token",
    "masked": "fill in masked tokens",
    "span_corruption": "restore spans, and continue texts",
}


def assemble(plan: Plan, seconds: float) -> Comparison:
    """The result of a comparison whose jobs are all done."""
    outcomes: dict[str, list[Outcome]] = {each.name: [] for each in plan.contenders}
    tried: dict[str, list[Trial]] = {each.name: [] for each in plan.contenders}
    for job in jobs.all_jobs(plan):
        outcome = jobs.read(plan, job)
        if job.rate is None:
            outcomes[job.contender.name].append(outcome)
        else:
            trial = Trial(learning_rate=job.rate, validation_loss=outcome.validation_loss)
            tried[job.contender.name].append(trial)
    _check(plan, outcomes)
    groups = [_group(plan, panel, outcomes) for panel in PANELS]
    names = list(dict.fromkeys(name for found in outcomes.values() for name in found[0].tasks))
    tasks = [_task(name, outcomes) for name in names]
    judged = [(*judge(panel, found), found) for panel, found in groups + tasks]
    verdicts: list[Verdict] = [verdict for _, each, _ in judged for verdict in each]
    made = plan.ablation
    if made is not None:
        made = effects(made, [(panel, found) for panel, _, found in judged])
    panels = [panel for panel, _, _ in judged]
    return Comparison(
        title=listed([each.name for each in plan.contenders]) if made is None else f"changes to {made.base}",
        repeat=plan.request.command(str(plan.out)),
        setup=_setup(plan, seconds),
        contenders=tuple(_contender(plan, n, outcomes, tried) for n in range(len(plan.contenders))),
        groups=tuple(panel for panel in panels[: len(groups)] if panel.scores),
        tasks=tuple(_finish_task(panel, outcomes) for panel in panels[len(groups) :]),
        verdicts=tuple(verdicts),
        ablation=made,
    )


def _check(plan: Plan, outcomes: dict[str, list[Outcome]]) -> None:
    """Raise UserError for runs that were not measured on the same pieces and items."""
    sizes: dict[object, object] = {}
    for each in plan.contenders:
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


def _group(plan: Plan, panel: Panel, outcomes: dict[str, list[Outcome]]) -> tuple[Panel, dict[str, Pieces]]:
    found: dict[str, Pieces] = {}
    left_out: dict[str, str] = {}
    for each in plan.contenders:
        if panel.name in members(each.config, each.objective):
            runs = [outcome.numbers[panel.name] for outcome in outcomes[each.name]]
            found[each.name] = Pieces(np.array([run.totals for run in runs]), np.array(runs[0].weights))
        else:
            left_out[each.name] = _why(panel.name, each.config.is_encoder_only)
    return replace(panel, left_out=left_out), found


def _why(panel: str, is_encoder: bool) -> str:
    if panel == "filling_in":
        return "it was not trained to fill in masked words"
    if panel == "spans":
        return "it was not trained to restore spans"
    if panel == "next_byte" and not is_encoder:
        return "it reads a beginning first, so it is measured on the rest of a text"
    return "it gives no probability of a text" if is_encoder else "it was not trained to continue texts"


def _task(name: str, outcomes: dict[str, list[Outcome]]) -> tuple[Panel, dict[str, Pieces]]:
    found: dict[str, Pieces] = {}
    left_out: dict[str, str] = {}
    first: TaskResult | None = None
    for contender, runs in outcomes.items():
        results = [run.tasks[name] for run in runs if name in run.tasks]
        first = first or next(iter(results), None)
        reason = next((each.reason for each in results if each.reason), None)
        if results and all(each.items for each in results):
            found[contender] = Pieces.of_items([each.items for each in results])
        else:
            left_out[contender] = reason or "it was not done"
    assert first is not None
    panel = Panel(
        name=name,
        title=name.replace("_", " ").capitalize(),
        measure=first.measure,
        lower_is_better=False,
        chance=first.chance,
        left_out=left_out,
    )
    return panel, found


def _finish_task(panel: Panel, outcomes: dict[str, list[Outcome]]) -> Panel:
    """With the parts and controls of each score, as means over seeds."""
    scores: list[Score] = []
    for score in panel.scores:
        results = [run.tasks[panel.name] for run in outcomes[score.contender]]
        parts = {name: float(np.mean([each.parts[name] for each in results])) for name in results[0].parts}
        controls = {name: float(np.mean([each.controls[name] for each in results])) for name in results[0].controls}
        scores.append(replace(score, parts=parts, controls=controls))
    return replace(panel, scores=tuple(scores))


def _contender(
    plan: Plan, number: int, outcomes: dict[str, list[Outcome]], tried: dict[str, list[Trial]]
) -> ContenderResult:
    each = plan.contenders[number]
    runs = outcomes[each.name]
    spent = [run.allowance for run in runs if run.allowance is not None]
    size = parameters(each.config)
    steps = round(float(np.mean([one.steps for one in spent]))) if spent else 0
    tokens = round(float(np.mean([one.tokens for one in spent]))) if spent else 0
    seconds = float(np.mean([run.seconds for run in runs]))
    text = plan.text
    return ContenderResult(
        name=each.name,
        spec=each.spec,
        config=json.loads(json.dumps(each.config.to_dict())),
        objective=each.objective or _OBJECTIVES[objective_of(each.config)],
        parameters=size,
        parameters_outside_embeddings=parameters_outside_embeddings(each.config),
        flops_per_token=flops_per_token(each.config, text.window),
        steps=steps,
        tokens=tokens,
        flops=float(np.mean([one.flops for one in spent])) if spent else 0.0,
        bytes=round(tokens * text.training.header.bytes / max(1, len(text.training))),
        order_digest=tuple(one.digest for one in spent),
        seconds=seconds,
        tokens_per_second=tokens / seconds if seconds else 0.0,
        memory_bytes=_BYTES_A_PARAMETER * size,
        cache_bytes_per_token=cache_bytes_per_token(each.config),
        learning_rate=runs[0].learning_rate or 0.0,
        trials=tuple(tried[each.name]),
        notes=each.notes,
        runs=tuple(run.directory for run in runs),
        curves=tuple(run.curve for run in runs if run.curve is not None),
        samples=runs[0].samples,
        blanks=runs[0].blanks,
    )


def _setup(plan: Plan, seconds: float) -> Setup:
    text, request = plan.text, plan.request
    training, held_out = text.training.header, text.held_out.header
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
        matched=plan.matched,
        budget=request.budget.kind,
        amount=request.budget.amount,
        seeds=seeds_of(plan),
        tuned=request.tune,
        machine=f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}",
        seconds=seconds,
    )
