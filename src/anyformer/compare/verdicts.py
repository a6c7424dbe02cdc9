"""Numbers of several contenders, side by side, and what may be said about them."""

import math
from collections.abc import Mapping
from dataclasses import replace
from itertools import combinations

from anyformer.compare.result import BETTER, UNDECIDED, Panel, Score, Verdict
from anyformer.compare.statistics import ALPHA, Pieces, difference, estimate, holm


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
    verdicts: list[Verdict] = []
    for a, b in combinations(names, 2):
        estimated = difference(found[a], found[b])
        verdicts.append(
            Verdict(
                panel=panel.name,
                a=a,
                b=b,
                measure=panel.measure,
                difference=estimated.value,
                interval=estimated.interval,
                p=estimated.p,
                p_corrected=estimated.p,
                verdict=UNDECIDED,
            )
        )
    corrected = holm([each.p for each in verdicts])
    judged = [
        replace(each, p_corrected=p, verdict=BETTER if p < ALPHA else UNDECIDED)
        for each, p in zip(verdicts, corrected, strict=True)
    ]
    pieces = max((each.totals.shape[1] for each in found.values()), default=0)
    return replace(panel, scores=tuple(scores), pieces=pieces), judged


def _possible(interval: tuple[float, float], panel: Panel) -> tuple[float, float]:
    """Without values that a measure can't take: few seeds make an interval wide."""
    highest = math.inf if panel.lower_is_better else 1.0
    return max(0.0, interval[0]), min(highest, interval[1])
