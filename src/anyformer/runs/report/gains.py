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
_SCALES = {"bleu": 100.0, "chrf": 100.0, "chrf++": 100.0, **dict.fromkeys(("perplexity", "bits_per_byte", "mse"))}
"""The best value of a metric where that isn't 1; None for metrics that have no largest value."""


def gains(directory: Path, *, generates: bool = True) -> dict[str, Any] | None:
    """The values of the section; None where there is no evaluation.json that can be read."""
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
    colors = {kind: index % 8 for index, kind in enumerate(kinds)}
    answers, worst = ([_answer(each, colors) for each in values[name]] for name in ("answers", "worst"))
    spans = any(each["spans"] for each in answers + worst)
    return {
        "about": f"{values['measured_on']} that the model is not trained on, 95% intervals" if count else "",
        "metrics": rows,
        "compared": any(row["before"] != number(None) for row in rows),
        "classes": [_class(each) for each in values["classes"][:_CLASSES]],
        "confusion": _confusion(values["confusion"]),
        "answers_title": "Answers before and after" if generates else f"Changed: {values['changed']:,d} of {count:,}",
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
    best = _SCALES.get(name, 1.0)
    low, high = interval or (after, after)
    # Positions on a bar, in percent of its length.
    scale = {
        key: None if value is None or best is None else f"{100 * min(max(value / best, 0.0), 1.0):.1f}"
        for key, value in {"before": before, "after": after, "low": low, "high": high}.items()
    }
    return {
        "name": title or name.replace("_", " "),
        "before": number(before),
        "after": number(after),
        "interval": _range(interval),
        "gain": "" if gain is None else f"{'+' * (gain >= 0)}{number(gain)}",
        "difference": _range(difference),
        "verdict": "" if gain is None else verdict,
        "scale": None if best is None else scale,
    }


def _class(values: Mapping[str, Any]) -> list[str]:
    counts = [_number(values[name]) for name in ("training", "held_out")]
    scores = [_number(values[name]) for name in ("precision", "recall", "f1")]
    return [str(values["label"]), *("–" if each is None else f"{each:,.0f}" for each in counts), *map(number, scores)]


def _confusion(values: Any) -> dict[str, Any] | None:
    if values is None or len(values["labels"]) > _LABELS:
        return None
    labels = [str(label) for label in values["labels"]]
    rows = [
        {
            "label": label,
            "cells": [
                {"count": f"{count:,d}", "share": f"{100 * count / max(1, sum(counts)):.0f}", "right": row == column}
                for column, count in enumerate(counts)
            ],
        }
        for row, (label, counts) in enumerate(zip(labels, values["matrix"], strict=True))
    ]
    return {"labels": labels, "rows": rows}


def _answer(values: Mapping[str, Any], colors: Mapping[str, int]) -> dict[str, Any]:
    texts = {name: str(values[name]) for name in ("where", "question", "reference", "after")}
    before, spans = values["before"], values.get("spans")
    return {
        **texts,
        "before": None if before is None else str(before),
        "right": values["right"] is True,
        "spans": None if spans is None else _spans(spans, colors),
    }


def _spans(values: Mapping[str, Any], colors: Mapping[str, int]) -> dict[str, list[dict[str, Any]]]:
    """Pieces of a sentence with their right tags and with the model's; a piece agrees if both sides have it."""
    sides = {name: [(str(text), str(kind)) for text, kind in values[name]] for name in ("right", "after")}
    starts = {name: accumulate((len(text) for text, _ in pieces), initial=0) for name, pieces in sides.items()}
    located = {name: list(zip(starts[name], pieces, strict=False)) for name, pieces in sides.items()}
    common = {*located["right"]} & {*located["after"]}
    return {
        name: [
            {"text": text, "kind": kind, "color": colors.get(kind, 0), "agrees": (start, (text, kind)) in common}
            for start, (text, kind) in pieces
        ]
        for name, pieces in located.items()
    }


def _number(value: Any) -> float | None:
    """A finite number; None for None. Raises TypeError for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float | None):
        raise TypeError("that is no number")
    return finite(value)


def _bounds(values: Any) -> tuple[float, float] | None:
    if values is None:
        return None
    low, high = (_number(value) for value in cast("Sequence[Any]", values))
    return None if low is None or high is None else (low, high)


def _range(bounds: tuple[float, float] | None) -> str:
    return "" if bounds is None else f"{number(bounds[0])} to {number(bounds[1])}"
