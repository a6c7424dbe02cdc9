"""Contents of the page on several runs, beside their curves."""

from collections.abc import Callable, Sequence
from typing import Any

from anyformer.pages.formatting import clock, count, fixed, setting, whole
from anyformer.runs.listing import Run, differences, passages
from anyformer.runs.report.charts import comparison_data
from anyformer.runs.report.page import unreadable

Show = Callable[[Run], str]

COLUMNS: dict[str, Show] = {
    "name": lambda run: run.name,
    "preset": lambda run: run.preset or "–",
    "parameters": lambda run: count(run.parameters),
    "state": lambda run: run.state,
    "steps": lambda run: whole(run.step),
    "tokens": lambda run: count(run.tokens),
    "time": lambda run: clock(run.seconds),
    "tokens/s": lambda run: count(run.tokens_per_second),
    "loss": lambda run: fixed(run.validation_loss),
    "bits/byte": lambda run: fixed(run.bits_per_byte),
}
"""Columns of a table of runs; `loss` is that of the validation text."""

TEXTS = ("name", "preset", "state")
"""The columns that hold no number."""


def comparison(runs: Sequence[Run]) -> dict[str, Any]:
    """The values of comparison.html."""
    names = [run.name for run in runs]
    best = best_scores(runs)

    def cells(run: Run) -> list[dict[str, Any]]:
        shown = [(column, show(run)) for column, show in COLUMNS.items() if column != "name"]
        return [{"text": text, "best": (column, run.name) in best} for column, text in shown]

    return {
        "title": f"{', '.join(names[:4])} · anyformer",
        "heading": " vs ".join(names) if len(names) <= 3 else f"{len(names)} runs",
        "about": "losses are comparable only where the task, the tokenizer and the validation data are the same"
        if differing(runs)
        else "same tokenizer and data: losses are comparable",
        "notes": [f"{run.name}: {unreadable(run)}" for run in runs if run.broken_lines],
        "state": "",
        "runs": runs,
        "columns": list(COLUMNS),
        "rows": [{"name": run.name, "cells": cells(run)} for run in runs],
        "data": comparison_data(runs),
        "differences": [
            {"name": name, "cells": [setting(value) for value in values]} for name, values in differences(runs).items()
        ],
        "samples": [
            {
                "name": run.name,
                "color": color,
                "step": f"{run.samples[-1]['step']:,}",
                "passages": passages(run.samples[-1]),
            }
            for color, run in enumerate(runs)
            if run.samples
        ],
    }


def best_scores(runs: Sequence[Run]) -> set[tuple[str, str]]:
    """The columns and names of the runs with the lowest scores, where there is something to compare."""
    found: set[tuple[str, str]] = set()
    for column, score in (("loss", "validation_loss"), ("bits/byte", "bits_per_byte")):
        known = [(value, run.name) for run in runs if (value := getattr(run, score)) is not None]
        if len(known) > 1 and not (column == "loss" and differing(runs)):
            found |= {(column, name) for value, name in known if value == min(known)[0]}
    return found


def differing(runs: Sequence[Run]) -> bool:
    """Whether the runs' losses are of different texts, tokens or tasks, and so can't be compared."""
    settings = {"tokenizer", "data", "validation", "field", "source", "target", "objective"}
    settings |= {"task", "columns", "train_on", "label_kind", "loss", "beta"}
    if any(run.terms.per_token for run in runs):
        settings.add("base")  # which has the tokenizer
    return bool(settings & differences(runs).keys())
