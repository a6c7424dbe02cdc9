"""Numbers of several contenders, side by side, and what may be said about them and about the changes of an ablation."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import combinations, product

import numpy as np

from anyformer.compare.result import (
    BETTER,
    NO_VERDICT,
    UNDECIDED,
    WORSE,
    Ablation,
    Difference,
    Effect,
    Panel,
    Score,
    Verdict,
)
from anyformer.compare.statistics import ALPHA, Estimate, Pieces, difference, estimate, holm
from anyformer.errors import UserError
from anyformer.evaluation.metrics.metric import FEWEST, Interval, wilson


def judge(panel: Panel, found: Mapping[str, Pieces]) -> tuple[Panel, list[Verdict]]:
    """Fill a panel with the numbers of its contenders, the best first, and compare each two of them.

    Args:
        panel: without scores.
        found: the numbers of each contender on the same pieces.
    """
    sign = 1 if panel.lower_is_better else -1
    names = sorted(found, key=lambda name: sign * found[name].value)
    scores = [
        Score(
            contender=name,
            value=found[name].value,
            interval=_interval(found[name], panel),
            seeds=tuple(found[name].seeds.tolist()),
        )
        for name in names
    ]
    first = next(iter(found.values()), None)
    seeds, pieces = (0, 0) if first is None else first.totals.shape
    panel = replace(panel, scores=tuple(scores), pieces=pieces, no_verdict=_no_verdict(panel, seeds, pieces))
    pairs = list(combinations(names, 2))
    differences = decide(panel, [difference(found[a], found[b]) for a, b in pairs])
    verdicts = [Verdict(a=a, b=b, **vars(each)) for (a, b), each in zip(pairs, differences, strict=True)]
    return panel, verdicts


def decide(panel: Panel, estimates: Sequence[Estimate]) -> list[Difference]:
    """Which of the differences of a panel are more than noise, all of them together: p is corrected for their number.

    Args:
        panel: of the numbers; where it says why there is no verdict, there is none.
        estimates: each of a first number less a second.
    """
    return [
        Difference(
            panel=panel.name,
            measure=panel.measure,
            difference=each.value,
            interval=each.interval,
            p=each.p,
            p_corrected=p,
            verdict=_verdict(panel, each.value, p),
        )
        for each, p in zip(estimates, holm([each.p for each in estimates]), strict=True)
    ]


def _verdict(panel: Panel, value: float, p: float) -> str:
    if panel.no_verdict is not None:
        return NO_VERDICT
    return UNDECIDED if p >= ALPHA else BETTER if (value < 0) == panel.lower_is_better else WORSE


def _no_verdict(panel: Panel, seeds: int, pieces: int) -> str | None:
    """Why nothing is said about which is better; None: it is."""
    if seeds == 1:
        return "there is one seed, and another could turn it round"
    if pieces < FEWEST:
        items = "held-out pieces" if panel.chance is None else "items"
        return f"it takes {FEWEST} {items}, and there are {pieces}"
    return None


def _interval(pieces: Pieces, panel: Panel) -> tuple[float, float]:
    """The noise band, without values that a measure can't take: few seeds make it wide.

    Of a task it is at least as wide as Wilson's for as many items: if all are right, resamples are all alike.
    """
    low, high = estimate(pieces).interval
    least = Interval(low, high) if panel.chance is None else wilson(pieces.value, pieces.totals.shape[1])
    highest = math.inf if panel.lower_is_better else 1.0
    return max(0.0, min(low, least.low)), min(highest, max(high, least.high))


_MOST = 64


def grid(base: str, vary: Sequence[str]) -> Ablation:
    """All combinations of the values of some fields.

    Args:
        base: what is changed, as `read_config` takes it.
        vary: fields and their values, such as ``norm.kind=layer,rms``; the first value is the baseline.

    Raises:
        UserError: a field without values, with one alone, or given twice; more combinations than can be trained.
    """
    factors: dict[str, list[str]] = {}
    for each in vary:
        name, equals, values = each.partition("=")
        found = [value.strip() for value in values.split(",") if value.strip()]
        if not equals or len(found) < 2 or len(set(found)) < len(found):
            raise UserError(f"--vary {each}: write a field and two or more different values: norm.kind=layer,rms.")
        if name in factors:
            raise UserError(f"--vary {name} is given twice: give all its values together.")
        factors[name] = found
    names: dict[str, dict[str, str]] = {}
    for values in product(*factors.values()):
        setting = dict(zip(factors, values, strict=True))
        names[_name(setting)] = setting
    if len(names) > _MOST:
        raise UserError(f"--vary makes {len(names)} models, more than {_MOST}: vary fewer fields at a time.")
    return Ablation(base=base, factors=factors, grid=names)


def specs(ablation: Ablation) -> dict[str, str]:
    """How `read_config` is told about each model of the grid, by its name."""
    joint = "," if ":" in ablation.base else ":"
    return {name: f"{ablation.base}{joint}{_name(setting, ',')}" for name, setting in ablation.grid.items()}


def effects(ablation: Ablation, panels: Sequence[tuple[Panel, Mapping[str, Pieces]]]) -> Ablation:
    """Fill in what each value is worth, in each panel that all models of the grid are in."""
    made: list[Effect] = []
    for panel, found in panels:
        if set(found) != set(ablation.grid):
            continue
        changes = [(name, value) for name, values in ablation.factors.items() for value in values[1:]]
        differences = decide(panel, [_estimate(ablation, found, name, value) for name, value in changes])
        made += (
            Effect(field=name, value=value, baseline=ablation.factors[name][0], **vars(each))
            for (name, value), each in zip(changes, differences, strict=True)
        )
    return replace(ablation, effects=tuple(made))


def _estimate(ablation: Ablation, found: Mapping[str, Pieces], name: str, value: str) -> Estimate:
    """The difference that a value of a field makes, less that of the field's first."""
    baseline = ablation.factors[name][0]
    pairs = [
        (found[_name({**setting, name: value})], found[_name({**setting, name: baseline})])
        for setting in ablation.grid.values()
        if setting[name] == baseline
    ]
    totals = np.mean([changed.totals - before.totals for changed, before in pairs], axis=0)
    return estimate(Pieces(totals, pairs[0][0].weights))


def _name(setting: Mapping[str, str], separator: str = " ") -> str:
    return separator.join(f"{name}={value}" for name, value in setting.items())
