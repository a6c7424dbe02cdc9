"""Groups and tasks as texts and positions: numbers with their intervals, chance lines, and what may be said."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from anyformer.compare.result import BETTER, NO_VERDICT, WORSE, Comparison, Difference, Panel, Score, Verdict
from anyformer.pages.formatting import fixed, listed

_MOST_VALUES = 5
"""Values of a panel, beside its verdict."""
_Position = Callable[[float], str | None]
"""From a number to its position from 0 to 100, as text."""


def panels(comparison: Comparison, which: Sequence[Panel]) -> list[dict[str, Any]]:
    """The values of groups, or of tasks, that have something to compare."""
    colors = _colors(comparison)
    return [_panel(panel, comparison.verdicts_of(panel), colors) for panel in which if len(panel.scores) > 1]


def findings(comparison: Comparison) -> list[dict[str, Any]]:
    """The verdict on each panel that has something to compare, in a sentence, and the numbers that it is of."""
    colors = _colors(comparison)
    rows: list[dict[str, Any]] = []
    for panel in comparison.panels:
        verdicts = comparison.verdicts_of(panel)
        if len(panel.scores) > 1 and verdicts:
            about = [panel.measure, _direction(panel)]
            about += [f"chance {fixed(panel.chance)}"] if panel.chance is not None else []
            sentence, tone = _finding(panel, verdicts)
            rest = panel.scores[_MOST_VALUES:]
            rows.append(
                {
                    "name": panel.name,
                    "title": panel.title,
                    "about": ", ".join(about),
                    "sentence": sentence,
                    "tone": tone,
                    "difference": _gap(panel, verdicts),
                    "values": [_named(score, colors) for score in panel.scores[:_MOST_VALUES]],
                    "rest": f"{len(rest)} more, to {fixed(rest[-1].value)}" if rest else "",
                }
            )
    return rows


def _colors(comparison: Comparison) -> dict[str, int]:
    return {each.name: color % 8 for color, each in enumerate(comparison.models)}


def _direction(panel: Panel) -> str:
    return "lower is better" if panel.lower_is_better else "higher is better"


def _named(score: Score, colors: Mapping[str, int]) -> dict[str, Any]:
    return {"name": score.model, "color": colors.get(score.model, 0), "value": fixed(score.value)}


def _gap(panel: Panel, verdicts: Sequence[Verdict]) -> dict[str, str]:
    """The difference between the best model and the next one that it is better than, or else the next one."""
    best, *others = (score.model for score in panel.scores)
    pairs = {each.b: each for each in verdicts if each.a == best}
    ranked = [pairs.pop(name) for name in others if name in pairs] + [*pairs.values()]
    shown = next((each for each in ranked if each.verdict == BETTER), None) or next(iter(ranked), None)
    return {} if shown is None else {"pair": f"{shown.a} less {shown.b}", **difference(shown)}


def _finding(panel: Panel, verdicts: Sequence[Verdict]) -> tuple[str, str]:
    """A sentence on who is ahead, the best and all whom it can't be told from; and its tone."""
    if panel.no_verdict is not None:
        return f"{NO_VERDICT}: {panel.no_verdict}", ""
    best, *others = (score.model for score in panel.scores)
    behind = {each.b for each in verdicts if each.a == best and each.verdict == BETTER}
    level = [name for name in others if name not in behind]
    rest = [name for name in others if name in behind]
    if not rest:
        return f"{listed([best, *level])} are not distinguishable at this budget", ""
    apart = f", and not distinguishable from {listed(level)}" if level else ""
    return f"{best} is better than {listed(rest)}{apart}", "better"


def _panel(panel: Panel, verdicts: Sequence[Verdict], colors: Mapping[str, int]) -> dict[str, Any]:
    position = _scale(panel)
    apart = sum(each.verdict == BETTER for each in verdicts)
    items = "held-out pieces" if panel.chance is None else "items"
    left_out: dict[str, list[str]] = {}
    for name, why in panel.left_out.items():
        left_out.setdefault(why, []).append(name)
    kinds = list(dict.fromkeys(kind for score in panel.scores for kind in score.parts))
    parts = [
        {"name": score.model, "cells": [fixed(score.parts.get(kind, math.nan)) for kind in kinds]}
        for score in panel.scores
    ]
    return {
        "name": panel.name,
        "title": panel.title,
        "measure": panel.measure,
        "note": " ".join(filter(None, [panel.note, f"No verdict: {panel.no_verdict}." if panel.no_verdict else ""])),
        "about": ", ".join([_direction(panel), *([f"{panel.pieces:,} {items}"] if panel.pieces else [])]),
        "chance": None if panel.chance is None else {"text": fixed(panel.chance), "position": position(panel.chance)},
        "rows": [{**_named(score, colors), **_positions(score, position)} for score in panel.scores],
        "left_out": [{"names": listed(names), "why": why} for why, names in left_out.items()],
        "parts": {"kinds": kinds, "rows": parts} if kinds else None,
        "verdicts": [
            {"pair": each.pair, **difference(each), "verdict": each.verdict.removesuffix(" at this budget")}
            for each in verdicts
        ],
        "apart": f"{apart} of {len(verdicts)} {'pairs differ' if len(verdicts) > 1 else 'pair differs'}"
        if panel.no_verdict is None
        else "none",
    }


def _positions(score: Score, position: _Position) -> dict[str, Any]:
    low, high = score.interval
    return {
        "interval": interval(score.interval),
        "positions": {"value": position(score.value), "low": position(low), "high": position(high)},
        "seeds": [position(each) for each in score.seeds],
        "each_seed": ", ".join(map(fixed, score.seeds)),
        "controls": [
            {"name": name, "text": fixed(value), "position": position(value)} for name, value in score.controls.items()
        ],
    }


def _scale(panel: Panel) -> _Position:
    """The scale of a panel: of a task from 0 to 1, else from the least to the highest number, and a margin."""
    values = [each for score in panel.scores for each in (score.value, *score.interval, *score.controls.values())]
    values = [value for value in values if math.isfinite(value)]
    if panel.chance is not None:
        low, high = 0.0, max(1.0, *values) if values else 1.0
    else:
        low, high = (min(values), max(values)) if values else (0.0, 1.0)
        margin = 0.08 * (high - low or abs(high) or 1.0)
        low, high = low - margin, high + margin

    def position(value: float) -> str | None:
        return f"{100 * min(max((value - low) / (high - low or 1.0), 0.0), 1.0):.1f}" if math.isfinite(value) else None

    return position


def difference(each: Difference) -> dict[str, str]:
    """A difference as texts, and the tone of its verdict."""
    p = each.p_corrected
    return {
        "difference": f"{each.difference:+.4f}",
        "interval": interval(each.interval, signed=True),
        "p": "–" if not math.isfinite(p) else "below 0.001" if p < 0.001 else f"{p:.3f}",
        "verdict": each.verdict,
        "tone": each.verdict if each.verdict in (BETTER, WORSE) else "",
    }


def interval(bounds: tuple[float, float], *, signed: bool = False) -> str:
    """`2.0100 to 2.0300`."""
    low, high = (f"{bound:+.4f}" if signed and math.isfinite(bound) else fixed(bound) for bound in bounds)
    return f"{low} to {high}"
