"""Contents of compare.html."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from anyformer import atomic
from anyformer.compare.page.models import costs, diagrams, differences, maps, samples, trials
from anyformer.compare.page.panels import alone, effects, findings, panels
from anyformer.compare.result import ONE_SEED, Comparison, ContenderResult, Point, Setup
from anyformer.learn import attention_maps
from anyformer.pages.formatting import clock, count, finite, si
from anyformer.pages.render import render, require_page

PAGE = "compare.html"

_UNITS = {"flops": "FLOPs"}
_MATCHES = {
    "parameters": "sizes matched by parameters outside embeddings",
    "flops": "sizes matched by FLOPs a token",
}


def write_page(comparison: Comparison, file: Path) -> Path:
    """Write the page of a comparison.

    Args:
        comparison: What it shows.
        file: Where to. The runs of the comparison are looked for in its folder: their attention is left out if they
            are gone.

    Raises:
        UserError: the file is there already and is no page of anyformer's, or the disk refuses.
    """
    require_page(file)
    atomic.write(
        file, render("compare.html", page(comparison, file.parent), __package__ or "", attention_maps.__name__)
    )
    return file


def page(comparison: Comparison, folder: Path) -> dict[str, Any]:
    """The values of compare.html."""
    names = [{"name": each.name, "color": color % 8} for color, each in enumerate(comparison.contenders)]
    return {
        "title": f"{comparison.title} · anyformer",
        "heading": comparison.title,
        "state": "",
        "facts": _facts(comparison.setup),
        "notes": _notes(comparison),
        "names": names,
        "findings": findings(comparison),
        "effects": effects(comparison),
        "data": curves(comparison),
        "groups": panels(comparison, comparison.groups),
        "tasks": panels(comparison, comparison.tasks),
        "alone": alone(comparison),
        "costs": costs(comparison),
        "trials": trials(comparison),
        "matched": _matched(comparison),
        "diagrams": diagrams(comparison),
        "differences": differences(comparison),
        "samples": samples(comparison),
        "maps": maps(comparison, folder),
        "read": [
            {
                "name": each.name,
                "objective": each.objective,
                "bytes": f"{each.bytes:,}",
                "digests": ", ".join(digest[:12] for digest in each.order_digest),
                "notes": each.notes,
            }
            for each in comparison.contenders
        ],
        "repeat": comparison.repeat,
        "machine": ", ".join(filter(None, [comparison.setup.machine, clock(comparison.setup.seconds)])),
    }


def _facts(setup: Setup) -> list[str]:
    seeds = f"{setup.seeds} seeds" if setup.seeds > 1 else "one seed"
    return [
        ", ".join(setup.data) or "the standard library of Python",
        f"{si(setup.training_bytes)}B to train on, {si(setup.held_out_bytes)}B held out",
        setup.tokenizer,
        f"{setup.batch_size} × {setup.window} tokens a step",
        f"{count(setup.amount)} {_UNITS.get(setup.budget, setup.budget)} each, {seeds}",
    ]


def _notes(comparison: Comparison) -> list[str]:
    setup = comparison.setup
    notes = [
        "Numbers stand only beside those of their group. Intervals cover 95%, and a difference counts where it is "
        "beyond chance after Holm's correction for the number of pairs."
    ]
    if setup.seeds == 1:
        notes.append(ONE_SEED)
    return notes


def _matched(comparison: Comparison) -> str:
    setup = comparison.setup
    if setup.match not in _MATCHES:
        return "Sizes are not matched."
    values = ", ".join(f"{name} {count(value)}" for name, value in setup.matched.items())
    return f"{_MATCHES[setup.match].capitalize()}: {values}."


_COLUMNS = {"step": "step", "tokens": "tokens", "flops": "flops", "time": "seconds"}
"""Horizontal axes of a curve, and the fields of a point."""


def curves(comparison: Comparison) -> dict[str, Any]:
    """The charts: for each objective bits per byte, or the loss, of the held-out text."""
    axes: list[dict[str, Any]] = []
    charts: list[dict[str, Any]] = []
    by_objective: dict[str, list[int]] = {}
    for color, each in enumerate(comparison.contenders):
        by_objective.setdefault(each.objective, []).append(color)
    for objective, colors in by_objective.items():
        field = _field([comparison.contenders[color] for color in colors])
        series = [line for color in colors for line in _series(comparison.contenders[color], color, field, axes)]
        if series:
            charts.append(_chart(objective, field, series))
    return {"axes": axes, "charts": charts}


def _field(contenders: Sequence[ContenderResult]) -> str:
    points = [point for each in contenders for curve in each.curves for point in curve.points]
    known = points and all(point.bits_per_byte is not None for point in points)
    return "bits_per_byte" if known else "validation_loss"


def _chart(objective: str, field: str, series: list[dict[str, Any]]) -> dict[str, Any]:
    name, note = f"{objective[:1].upper()}{objective[1:]}", "bits per byte" if field == "bits_per_byte" else "nats"
    return {"title": name, "note": note, "format": "loss", "zero": False, "scaled": True, "series": series, "marks": []}


def _series(each: ContenderResult, color: int, field: str, axes: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The mean over seeds, and behind it the curve of each seed."""
    runs = [curve.points for curve in each.curves if curve.points]
    if not runs:
        return []
    found: list[dict[str, Any]] = []
    if len(runs) > 1:
        found += [_line(each.name, color, points, field, axes, "seed") for points in runs]
    # Seeds take the same steps, unless time is what they may spend.
    steps = set.intersection(*({point.step for point in points} for points in runs))
    common = [[point for point in points if point.step in steps] for points in runs]
    mean = [_mean(points) for points in zip(*common, strict=True)]
    found.append(_line(each.name, color, mean, field, axes, "line"))
    return [line for line in found if any(value is not None for value in line["y"])]


def _mean(points: Sequence[Point]) -> Point:
    def mean(name: str) -> float | None:
        values = [getattr(point, name) for point in points]
        return None if None in values else math.fsum(values) / len(values)

    names = ("validation_loss", "bits_per_byte")
    first = points[0]
    return Point(
        step=first.step,
        tokens=first.tokens,
        flops=first.flops,
        seconds=mean("seconds") or 0.0,
        **{name: mean(name) for name in names},
    )


def _line(
    name: str, color: int, points: Sequence[Point], field: str, axes: list[dict[str, Any]], style: str
) -> dict[str, Any]:
    axes.append({axis: [finite(getattr(point, column), 6) for point in points] for axis, column in _COLUMNS.items()})
    values = [finite(getattr(point, field), 6) for point in points]
    return {"name": name, "axis": len(axes) - 1, "color": color, "style": style, "y": values}
