"""Contents of the page on a fine-tuning run about its gains: evaluation.json as texts and positions."""

import contextlib
from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, cast

from anyformer import limits
from anyformer.errors import UserError
from anyformer.pages.formatting import finite, number
from anyformer.runs.directory import EVALUATION

_LABELS, _CLASSES = 12, 60
"""Labels of a confusion matrix that is drawn, and of a table."""
_SCALES = {"bleu": 100.0, "chrf": 100.0, "chrf++": 100.0}
"""Metrics whose best value isn't 1."""
_OPEN = ("perplexity", "bits_per_byte", "mse")
"""Metrics without a largest value, which have no place on a scale."""


def gains(directory: Path, *, generates: bool = True) -> dict[str, Any] | None:
    """The values of the section; None where there is no evaluation.json that can be read.

    Args:
        directory: Of the run.
        generates: Whether the model answers with texts.
    """
    file = directory / EVALUATION
    if not file.is_file():
        return None
    # It may be of another version, or anybody's.
    with contextlib.suppress(UserError, KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError):
        return _section(limits.read_object(file), generates)
    return None


def _section(values: Mapping[str, Any], generates: bool) -> dict[str, Any]:
    count = int(values["examples"])
    rows = [_metric(str(name), each) for name, each in values["metrics"].items() if each["after"] is not None]
    if values["general"] is not None:
        rows.append(_metric("perplexity", values["general"], "general text, perplexity"))
    kinds = [str(each["label"]) for each in values["classes"]]
    colors = {kind: place % 8 for place, kind in enumerate(kinds)}
    answers = [_row(each, colors) for each in values["answers"]]
    worst = [_row(each, colors) for each in values["worst"]]
    spans = any(each["spans"] for each in answers + worst)
    changed = int(values["changed"])
    return {
        "about": f"{values['measured_on']} that the model is not trained on, 95% intervals" if count else "",
        "metrics": rows,
        "compared": any(row["before"] != number(None) for row in rows),
        "classes": [_class(each) for each in values["classes"][:_CLASSES]],
        "confusion": _confusion(values["confusion"]),
        "answers_title": "Answers before and after" if generates else f"Changed: {changed:,} of {count:,}",
        "answers": answers,
        "worst": [] if generates else worst,
        "kinds": [{"name": kind, "color": colors[kind]} for kind in kinds[:_CLASSES]] if spans else [],
        "notes": [str(note) for note in values["notes"]],
    }


def _metric(name: str, values: Mapping[str, Any], title: str | None = None) -> dict[str, Any]:
    before, after = _number(values["before"]), _number(values["after"])
    interval, difference = _bounds(values["interval"]), _bounds(values["difference"])
    gain = None if before is None or after is None or difference is None else after - before
    better = gain is not None and (gain > 0) == bool(values["higher_is_better"])
    apart = values["distinguishable"]
    verdict = "no verdict" if apart is None else ("better" if better else "worse") if apart else "not distinguishable"
    return {
        "name": title or name.replace("_", " "),
        "before": number(before),
        "after": number(after),
        "interval": _range(interval),
        "gain": "" if gain is None else f"{'+' * (gain >= 0)}{number(gain)}",
        "difference": _range(difference),
        "verdict": "" if gain is None else verdict,
        "scale": None if name in _OPEN else _scale(before, after, interval, _SCALES.get(name, 1.0)),
    }


def _scale(
    before: float | None, after: float | None, interval: tuple[float, float] | None, best: float
) -> dict[str, str | None]:
    """Places from 0 to 100 of a bar: the value before and after, and the interval."""

    def place(value: float | None) -> str | None:
        return None if value is None else f"{100 * min(max(value / best, 0.0), 1.0):.1f}"

    low, high = interval or (after, after)
    return {"before": place(before), "after": place(after), "low": place(low), "high": place(high)}


def _class(values: Mapping[str, Any]) -> list[str]:
    counts = [_number(values[name]) for name in ("training", "held_out")]
    scores = [_number(values[name]) for name in ("precision", "recall", "f1")]
    return [str(values["label"]), *("–" if each is None else f"{each:,.0f}" for each in counts), *map(number, scores)]


def _confusion(values: Any) -> dict[str, Any] | None:
    if values is None or len(values["labels"]) > _LABELS:
        return None
    labels = [str(label) for label in values["labels"]]
    matrix = [[int(count) for count in row] for row in values["matrix"]]
    rows = [
        {
            "label": label,
            "cells": [
                {"count": f"{count:,}", "share": f"{100 * count / max(1, sum(counts)):.0f}", "right": row == place}
                for place, count in enumerate(counts)
            ],
        }
        for row, (label, counts) in enumerate(zip(labels, matrix, strict=True))
    ]
    return {"labels": labels, "rows": rows}


def _row(values: Mapping[str, Any], colors: Mapping[str, int]) -> dict[str, Any]:
    texts = {name: str(values[name]) for name in ("where", "question", "reference", "after")}
    before = values["before"]
    spans = values.get("spans")
    return {
        **texts,
        "before": None if before is None else str(before),
        "right": values["right"] is True,
        "spans": None if spans is None else _spans(spans, colors),
    }


def _spans(values: Mapping[str, Any], colors: Mapping[str, int]) -> dict[str, list[dict[str, Any]]]:
    """The pieces of a sentence as it is tagged right and as it was tagged; a piece that only one of them has is so."""
    sides = {name: [(str(text), str(kind)) for text, kind in values[name]] for name in ("right", "after")}
    starts = {name: list(accumulate((len(text) for text, _ in pieces), initial=0)) for name, pieces in sides.items()}
    placed = {name: list(zip(starts[name], pieces, strict=False)) for name, pieces in sides.items()}
    common = set(placed["right"]) & set(placed["after"])
    return {
        name: [
            {"text": each[1][0], "kind": each[1][1], "color": colors.get(each[1][1], 0), "agrees": each in common}
            for each in pieces
        ]
        for name, pieces in placed.items()
    }


def _number(value: Any) -> float | None:
    """A finite number; None for None. Raises TypeError for anything else."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError("that is no number")
    return finite(value)


def _bounds(values: Any) -> tuple[float, float] | None:
    if values is None:
        return None
    low, high = (_number(value) for value in cast("Sequence[Any]", values))
    return None if low is None or high is None else (low, high)


def _range(bounds: tuple[float, float] | None) -> str:
    return "" if bounds is None else f"{number(bounds[0])} to {number(bounds[1])}"
