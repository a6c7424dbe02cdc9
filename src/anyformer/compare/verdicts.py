"""Verdicts on several models side by side, and on the changes of an ablation.

How sure a difference is follows from a paired bootstrap over held-out pieces, the noise of the seeds, and Holm's
correction for the number of differences.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, product
from typing import Self

import numpy as np
import numpy.typing as npt

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
from anyformer.errors import UserError
from anyformer.evaluation.metrics import FEWEST, percentiles, ratio, wilson

Float64 = npt.NDArray[np.float64]

CONFIDENCE = 0.95
_RESAMPLES = 10_000
_MOST = 64
"""Models of a grid."""


@dataclass(frozen=True, eq=False)
class Pieces:
    """The numbers of one model, piece by piece.

    A measure is the ratio of two sums over pieces: nats and bytes, or right answers and questions.

    Attributes:
        totals: [seeds, pieces] such as the nats of each held-out piece.
        weights: [pieces] such as its bytes; the same for every model that this one is compared with.
    """

    totals: Float64
    weights: Float64

    @classmethod
    def of_items(cls, items: Sequence[Sequence[float]]) -> Self:
        """Items of equal weight, such as right and wrong answers, by seed."""
        totals = np.array(items, dtype=np.float64)
        return cls(totals, np.ones(totals.shape[1]))

    @property
    def seeds(self) -> Float64:
        """[seeds] the measure of each seed."""
        return self.totals.sum(axis=1) / self.weights.sum()

    @property
    def value(self) -> float:
        """The mean over seeds."""
        return float(self.seeds.mean())


@dataclass(frozen=True)
class Estimate:
    """A value, its 95% interval, and the two-sided p of its being 0."""

    value: float
    interval: tuple[float, float]
    p: float


def estimate(pieces: Pieces) -> Estimate:
    """Estimate the noise band of a measure.

    Two things could have come out differently, and are resampled together: the pieces that were held out, by a
    bootstrap (Efron & Tibshirani 1993, chapter 6; for language models Koehn 2004), and the seeds, of which there are
    few, so that their mean is taken to be off by a draw from Student's t. Of one seed the noise is not known, and only
    the pieces' is in the band.
    """
    rng = np.random.default_rng(0)
    draws = ratio(pieces.totals.mean(axis=0), pieces.weights).resampled(_RESAMPLES, rng, multinomial=True)
    seeds = len(pieces.totals)
    if seeds > 1:
        spread = float(pieces.seeds.std(ddof=1)) / np.sqrt(seeds)
        draws += spread * rng.standard_t(seeds - 1, len(draws))
    below, above = int((draws <= 0).sum()), int((draws >= 0).sum())
    p = min(1.0, 2 * (min(below, above) + 1) / (len(draws) + 1))
    return Estimate(pieces.value, percentiles(draws, CONFIDENCE), p)


def difference(a: Pieces, b: Pieces) -> Estimate:
    """Estimate a's measure less b's, on the same pieces and the same seeds; raises ValueError for others.

    It is paired: what makes a piece hard for both, or an order of the data good for both, is no noise.
    """
    if a.totals.shape != b.totals.shape or not np.array_equal(a.weights, b.weights):
        raise ValueError("only numbers of the same pieces and the same seeds can be compared")
    return estimate(Pieces(a.totals - b.totals, a.weights))


def holm(p: Sequence[float]) -> list[float]:
    """Correct values of p for their number (Holm 1979): below 0.05 they hold together, with 95% confidence."""
    corrected, largest = [0.0] * len(p), 0.0
    for rank, index in enumerate(sorted(range(len(p)), key=p.__getitem__)):
        largest = max(largest, min(1.0, (len(p) - rank) * p[index]))
        corrected[index] = largest
    return corrected


def compare_members(panel: Panel, numbers: Mapping[str, Pieces]) -> tuple[Panel, list[Verdict]]:
    """Fill a panel with the numbers of its models on the same pieces, the best first, and compare each two of them."""
    sign = 1 if panel.lower_is_better else -1
    names = sorted(numbers, key=lambda name: sign * numbers[name].value)
    scores = [
        Score(
            model=name,
            value=numbers[name].value,
            interval=_interval(numbers[name], panel),
            seeds=tuple(numbers[name].seeds.tolist()),
        )
        for name in names
    ]
    seeds, pieces = numbers[names[0]].totals.shape if names else (0, 0)
    no_verdict = None
    if seeds == 1:
        no_verdict = "there is one seed, and another could turn it round"
    elif pieces < FEWEST:
        items = "held-out pieces" if panel.chance is None else "items"
        no_verdict = f"it takes {FEWEST} {items}, and there are {pieces}"
    panel = replace(panel, scores=tuple(scores), pieces=pieces, no_verdict=no_verdict)
    pairs = list(combinations(names, 2))
    differences = decide(panel, [difference(numbers[a], numbers[b]) for a, b in pairs])
    verdicts = [Verdict(a=a, b=b, **vars(each)) for (a, b), each in zip(pairs, differences, strict=True)]
    return panel, verdicts


def decide(panel: Panel, estimates: Sequence[Estimate]) -> list[Difference]:
    """Decide which differences of a panel, of a first number less a second, are more than noise, all together."""
    differences: list[Difference] = []
    for each, p in zip(estimates, holm([each.p for each in estimates]), strict=True):
        verdict = BETTER if (each.value < 0) == panel.lower_is_better else WORSE
        if panel.no_verdict is not None or p >= 1 - CONFIDENCE:
            verdict = UNDECIDED if panel.no_verdict is None else NO_VERDICT
        differences.append(
            Difference(
                panel=panel.name,
                measure=panel.measure,
                difference=each.value,
                interval=each.interval,
                p=each.p,
                p_corrected=p,
                verdict=verdict,
            )
        )
    return differences


def _interval(pieces: Pieces, panel: Panel) -> tuple[float, float]:
    """The noise band, without values that a measure can't take: few seeds make it wide.

    Of a task it is at least as wide as Wilson's for as many items: if all are right, resamples are all alike.
    """
    low, high = estimate(pieces).interval
    if panel.chance is not None:
        least = wilson(pieces.value, pieces.totals.shape[1])
        low, high = min(low, least.low), max(high, least.high)
    return max(0.0, low), min(math.inf if panel.lower_is_better else 1.0, high)


def grid(base: str, vary: Sequence[str]) -> Ablation:
    """Combine the values of some fields in all ways.

    Args:
        base: the model that is changed, as `read_config` takes it.
        vary: fields and their values, such as ``norm.kind=layer,rms``; the first value is the baseline.

    Raises:
        UserError: a field without values, with one alone, or given twice; more combinations than can be trained.
    """
    factors: dict[str, list[str]] = {}
    for each in vary:
        name, equals, listed = each.partition("=")
        values = [value.strip() for value in listed.split(",") if value.strip()]
        if not equals or len(values) < 2 or len(set(values)) < len(values):
            raise UserError(f"--vary {each}: write a field and two or more different values: norm.kind=layer,rms.")
        if name in factors:
            raise UserError(f"--vary {name} is given twice: give all its values together.")
        factors[name] = values
    settings = [dict(zip(factors, values, strict=True)) for values in product(*factors.values())]
    if len(settings) > _MOST:
        raise UserError(f"--vary makes {len(settings)} models, more than {_MOST}: vary fewer fields at a time.")
    return Ablation(base=base, factors=factors, grid={_name(setting): setting for setting in settings})


def specs(ablation: Ablation) -> dict[str, str]:
    """The specification of each model of a grid for `read_config`, by its name."""
    joint = "," if ":" in ablation.base else ":"
    return {name: f"{ablation.base}{joint}{_name(setting, ',')}" for name, setting in ablation.grid.items()}


def effects(ablation: Ablation, panels: Sequence[tuple[Panel, Mapping[str, Pieces]]]) -> Ablation:
    """Fill in what each value is worth, in each panel that all models of the grid are in."""
    changes = [(name, value) for name, values in ablation.factors.items() for value in values[1:]]
    made: list[Effect] = []
    for panel, numbers in panels:
        if set(numbers) != set(ablation.grid):
            continue
        differences = decide(panel, [_effect(ablation, numbers, name, value) for name, value in changes])
        made += (
            Effect(field=name, value=value, baseline=ablation.factors[name][0], **vars(each))
            for (name, value), each in zip(changes, differences, strict=True)
        )
    return replace(ablation, effects=tuple(made))


def _effect(ablation: Ablation, numbers: Mapping[str, Pieces], name: str, value: str) -> Estimate:
    """The difference that a value of a field makes, less that of the field's first."""
    baseline = ablation.factors[name][0]
    pairs = [
        (numbers[_name({**setting, name: value})], numbers[_name(setting)])
        for setting in ablation.grid.values()
        if setting[name] == baseline
    ]
    totals = np.mean([changed.totals - before.totals for changed, before in pairs], axis=0)
    return estimate(Pieces(totals, pairs[0][0].weights))


def _name(setting: Mapping[str, str], separator: str = " ") -> str:
    return separator.join(f"{name}={value}" for name, value in setting.items())
