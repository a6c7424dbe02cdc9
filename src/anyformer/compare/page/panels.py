"""Groups and tasks as texts and places: numbers with their intervals, chance lines, and what may be said."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from anyformer.compare.result import BETTER, NO_VERDICT, WORSE, Comparison, Difference, Effect, Panel, Score, Verdict
from anyformer.pages.formatting import fixed, listed, setting

_MOST_VALUES = 5
"""Values of a panel, beside its verdict."""


def panels(comparison: Comparison, which: Sequence[Panel]) -> list[dict[str, Any]]:
    """The values of groups, or of tasks, that have something to compare."""
    colors = _colors(comparison)
    return [_panel(panel, comparison, colors) for panel in which if len(panel.scores) > 1]


def alone(comparison: Comparison) -> list[dict[str, str]]:
    """The numbers that stand beside no other: those of panels with a single contender."""
    return [
        {
            "name": score.contender,
            "of": f"{panel.title}, {panel.measure}",
            "value": fixed(score.value),
            "interval": interval(score.interval),
        }
        for panel in (*comparison.groups, *comparison.tasks)
        if len(panel.scores) == 1
        for score in panel.scores
    ]


def findings(comparison: Comparison) -> list[dict[str, Any]]:
    """The verdict on each panel that has something to compare, in a sentence, and the numbers that it is of."""
    colors = _colors(comparison)
    found: list[dict[str, Any]] = []
    for panel in (*comparison.groups, *comparison.tasks):
        verdicts = [each for each in comparison.verdicts if each.panel == panel.name]
        if len(panel.scores) > 1 and verdicts:
            about = [panel.measure, _direction(panel)]
            about += [f"chance {fixed(panel.chance)}"] if panel.chance is not None else []
            said = _finding(panel, verdicts)
            found.append(
                {
                    "name": panel.name,
                    "title": panel.title,
                    "about": ", ".join(about),
                    **said,
                    "difference": _gap(panel, verdicts),
                    **_values(panel, colors),
                }
            )
    return found


def _colors(comparison: Comparison) -> dict[str, int]:
    """The color of each contender, by its name."""
    return {each.name: color % 8 for color, each in enumerate(comparison.contenders)}


def _direction(panel: Panel) -> str:
    return "lower is better" if panel.lower_is_better else "higher is better"


def _values(panel: Panel, colors: Mapping[str, int]) -> dict[str, Any]:
    """The numbers of the best contenders, and in a few words those of the others."""
    shown = [
        {"name": score.contender, "color": colors.get(score.contender, 0), "value": fixed(score.value)}
        for score in panel.scores[:_MOST_VALUES]
    ]
    rest = panel.scores[_MOST_VALUES:]
    return {"values": shown, "rest": f"{len(rest)} more, to {fixed(rest[-1].value)}" if rest else ""}


def _gap(panel: Panel, verdicts: Sequence[Verdict]) -> dict[str, str]:
    """The difference between the best contender and the next one that it is better than, or else the next one."""
    best = panel.scores[0].contender
    order = {score.contender: place for place, score in enumerate(panel.scores)}
    pairs = sorted((each for each in verdicts if each.a == best), key=lambda each: order.get(each.b, len(order)))
    told = next((each for each in pairs if each.verdict == BETTER), None) or next(iter(pairs), None)
    if told is None:
        return {}
    return {"pair": f"{told.a} less {told.b}", **_difference(told)}


def effects(comparison: Comparison) -> list[dict[str, Any]]:
    """Effects of the changes of an ablation."""
    titles = {panel.name: panel.title for panel in (*comparison.groups, *comparison.tasks)}
    found = comparison.ablation.effects if comparison.ablation else ()
    return [_effect(each, titles) for each in found]


def _finding(panel: Panel, verdicts: Sequence[Verdict]) -> dict[str, str]:
    """Who is ahead: the best, and all whom it can't be told from."""
    if panel.no_verdict is not None:
        return {"said": f"{NO_VERDICT}: {panel.no_verdict}", "tone": ""}
    best, *others = (score.contender for score in panel.scores)
    behind = {each.b for each in verdicts if each.a == best and each.verdict == BETTER}
    level = [name for name in others if name not in behind]
    rest = [name for name in others if name in behind]
    if not level:
        return {"said": f"{best} is better than {listed(rest)}", "tone": "better"}
    if not rest:
        return {"said": f"{listed([best, *level])} are not distinguishable at this budget", "tone": ""}
    return {
        "said": f"{best} is better than {listed(rest)}, and not distinguishable from {listed(level)}",
        "tone": "better",
    }


def _panel(panel: Panel, comparison: Comparison, colors: Mapping[str, int]) -> dict[str, Any]:
    place = _scale(panel)
    verdicts = [each for each in comparison.verdicts if each.panel == panel.name]
    apart = sum(each.verdict == BETTER for each in verdicts)
    items = "held-out pieces" if panel.chance is None else "items"
    direction = _direction(panel)
    return {
        "name": panel.name,
        "title": panel.title,
        "measure": panel.measure,
        "note": " ".join(filter(None, [panel.note, f"No verdict: {panel.no_verdict}." if panel.no_verdict else ""])),
        "about": ", ".join([direction, *([f"{panel.pieces:,} {items}"] if panel.pieces else [])]),
        "chance": None if panel.chance is None else {"text": fixed(panel.chance), "place": place(panel.chance)},
        "rows": [_row(score, place, colors) for score in panel.scores],
        "left_out": _left_out(panel),
        "parts": _parts(panel),
        "verdicts": [_verdict(each) for each in verdicts],
        "apart": f"{apart} of {len(verdicts)} {'pairs differ' if len(verdicts) > 1 else 'pair differs'}"
        if panel.no_verdict is None
        else "none",
    }


def _left_out(panel: Panel) -> list[dict[str, str]]:
    """Candidates that are not in a panel, by reason."""
    names: dict[str, list[str]] = {}
    for name, why in panel.left_out.items():
        names.setdefault(why, []).append(name)
    return [{"names": listed(each), "why": why} for why, each in names.items()]


def _row(score: Score, place: Any, colors: Mapping[str, int]) -> dict[str, Any]:
    low, high = score.interval
    return {
        "name": score.contender,
        "color": colors.get(score.contender, 0),
        "value": fixed(score.value),
        "interval": interval(score.interval),
        "places": {"value": place(score.value), "low": place(low), "high": place(high)},
        "seeds": [place(each) for each in score.seeds],
        "each_seed": ", ".join(map(fixed, score.seeds)),
        "controls": [
            {"name": name, "text": fixed(value), "place": place(value)} for name, value in score.controls.items()
        ],
    }


def _parts(panel: Panel) -> dict[str, Any] | None:
    """The numbers by kind of item."""
    kinds = list(dict.fromkeys(kind for score in panel.scores for kind in score.parts))
    rows = [
        {"name": score.contender, "cells": [fixed(score.parts.get(kind, math.nan)) for kind in kinds]}
        for score in panel.scores
    ]
    return {"kinds": kinds, "rows": rows} if kinds else None


def _scale(panel: Panel) -> Any:
    """From a number to its place from 0 to 100, as text: all of a task from 0 to 1, else what there is and a margin."""
    values = [each for score in panel.scores for each in (score.value, *score.interval, *score.controls.values())]
    values = [value for value in values if math.isfinite(value)]
    if panel.chance is not None:
        low, high = 0.0, max(1.0, *values) if values else 1.0
    else:
        low, high = (min(values), max(values)) if values else (0.0, 1.0)
        margin = 0.08 * (high - low or abs(high) or 1.0)
        low, high = low - margin, high + margin

    def place(value: float) -> str | None:
        return f"{100 * min(max((value - low) / (high - low or 1.0), 0.0), 1.0):.1f}" if math.isfinite(value) else None

    return place


def _verdict(each: Verdict) -> dict[str, str]:
    return {"pair": each.pair, **_difference(each), "verdict": each.verdict.removesuffix(" at this budget")}


def _effect(each: Effect, titles: Mapping[str, str]) -> dict[str, str]:
    return {
        "field": each.field,
        "change": f"{setting(each.baseline)} → {setting(each.value)}",
        "panel": titles.get(each.panel, each.panel),
        "measure": each.measure,
        **_difference(each),
    }


def _difference(each: Difference) -> dict[str, str]:
    return {
        "difference": f"{each.difference:+.4f}",
        "interval": interval(each.interval, signed=True),
        "p": probability(each.p_corrected),
        "verdict": each.verdict,
        "tone": each.verdict if each.verdict in (BETTER, WORSE) else "",
    }


def interval(bounds: tuple[float, float], *, signed: bool = False) -> str:
    """`2.0100 to 2.0300`."""
    low, high = (f"{bound:+.4f}" if signed and math.isfinite(bound) else fixed(bound) for bound in bounds)
    return f"{low} to {high}"


def probability(value: float) -> str:
    """A p-value: `0.012`, or `below 0.001`."""
    return "–" if not math.isfinite(value) else "below 0.001" if value < 0.001 else f"{value:.3f}"
