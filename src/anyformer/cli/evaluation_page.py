"""An evaluation in the terminal, or as JSON."""

import math
from typing import Any

from rich.table import Table

from anyformer.console import Console
from anyformer.evaluation import Evaluation
from anyformer.pages.formatting import finite
from anyformer.terminal import printable, shorten

_MOST_LABELS = 12
"""Labels of a confusion matrix that is printed."""
_NAME, _TEXT = 60, 2000
"""Characters that are shown of a label, and of a row's text: short ones are chosen, and shown whole."""


def show(evaluation: Evaluation, worst: int) -> None:
    """Print the metrics with their intervals, the classes, the confusion matrix and the worst rows."""
    console = Console()
    if evaluation.rows:
        console.print(f"{evaluation.task}: {len(evaluation.rows):,} examples")
    for note in evaluation.notes:
        console.print(note)
    table = _table("metric", "value", "95% interval")
    intervals = evaluation.intervals()
    for name, value in evaluation.items():
        low, high = intervals[name]
        table.add_row(name, _number(value), "" if math.isnan(low) else f"{_number(low)} to {_number(high)}")
    console.print(table)
    if evaluation.classes:
        table = _table("class", "precision", "recall", "F1", "examples")
        for row in evaluation.classes:
            scores = (f"{value:.3f}" for value in (row.precision, row.recall, row.f1))
            table.add_row(_line(row.label, _NAME), *scores, f"{row.support:,}")
        console.print()
        console.print(table)
    confusion = evaluation.confusion
    if confusion is not None and len(confusion.labels) <= _MOST_LABELS:
        table = _table("is, taken for", *(_line(label, 20) for label in confusion.labels))
        for label, counts in zip(confusion.labels, confusion.matrix, strict=True):
            table.add_row(_line(label, 20), *(f"{count:,}" for count in counts))
        console.print()
        console.print(table)
    for number, row in enumerate(evaluation.worst(worst)):
        console.print("\nMost wrong about" if number == 0 else "")
        console.print(f"{row.location}: {_line(row.text, _TEXT)}")
        console.print(f"  right: {_line(row.reference, _TEXT)}   said: {_line(row.prediction, _TEXT)}")


def to_json(evaluation: Evaluation, worst: int) -> dict[str, Any]:
    """An evaluation as plain values; those that are not defined are None."""
    intervals = evaluation.intervals()
    confusion = evaluation.confusion
    return {
        "task": evaluation.task,
        "examples": len(evaluation.rows),
        "metrics": {
            name: {"value": finite(value), "low": finite(intervals[name].low), "high": finite(intervals[name].high)}
            for name, value in evaluation.items()
        },
        "classes": [
            {"label": row.label, "precision": row.precision, "recall": row.recall, "f1": row.f1, "support": row.support}
            for row in evaluation.classes
        ],
        "confusion": None
        if confusion is None
        else {"labels": list(confusion.labels), "matrix": confusion.matrix.tolist()},
        "worst": [
            {
                "where": str(row.location),
                "text": row.text,
                "reference": row.reference,
                "prediction": row.prediction,
                "loss": finite(row.loss),
            }
            for row in evaluation.worst(worst)
        ],
        "notes": list(evaluation.notes),
    }


def _table(first: str, *others: str) -> Table:
    table = Table(first, box=None, header_style="bold", pad_edge=False)
    for column in others:
        table.add_column(column, justify="right", no_wrap=True)
    return table


def _number(value: float) -> str:
    return f"{value:.4f}" if abs(value) < 10 else f"{value:,.2f}"


def _line(text: str, length: int) -> str:
    """A stranger's text in one line, without what a terminal would obey."""
    return shorten(" ".join(printable(text).split()), length)
