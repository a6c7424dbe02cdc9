"""Numbers of several contenders, side by side, and what may be said about them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import combinations

from anyformer.compare.result import BETTER, UNDECIDED, WORSE, Difference, Panel, Score, Verdict
from anyformer.compare.statistics import ALPHA, Estimate, Pieces, difference, estimate, holm


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
            interval=_possible(estimate(found[name]).interval, panel),
            seeds=tuple(found[name].seeds.tolist()),
        )
        for name in names
    ]
    pairs = list(combinations(names, 2))
    differences = decide(panel, [difference(found[a], found[b]) for a, b in pairs])
    verdicts = [Verdict(a=a, b=b, **vars(each)) for (a, b), each in zip(pairs, differences, strict=True)]
    pieces = max((each.totals.shape[1] for each in found.values()), default=0)
    return replace(panel, scores=tuple(scores), pieces=pieces), verdicts


def decide(panel: Panel, estimates: Sequence[Estimate]) -> list[Difference]:
    """Which of the differences of a panel are more than noise, all of them together: p is corrected for their number.

    Args:
        panel: of the numbers.
        estimates: each of a first number less a second.
    """
    sign = 1 if panel.lower_is_better else -1
    return [
        Difference(
            panel=panel.name,
            measure=panel.measure,
            difference=each.value,
            interval=each.interval,
            p=each.p,
            p_corrected=p,
            verdict=UNDECIDED if p >= ALPHA else BETTER if sign * each.value < 0 else WORSE,
        )
        for each, p in zip(estimates, holm([each.p for each in estimates]), strict=True)
    ]


def _possible(interval: tuple[float, float], panel: Panel) -> tuple[float, float]:
    """Without values that a measure can't take: few seeds make an interval wide."""
    highest = math.inf if panel.lower_is_better else 1.0
    return max(0.0, interval[0]), min(highest, interval[1])
