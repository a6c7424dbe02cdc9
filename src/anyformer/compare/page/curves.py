"""The curves of a comparison, as the page's script draws them; see `anyformer.runs.report.charts`.

A loss stands only beside losses of the same objective: there is a chart for each.
"""

import math
from collections.abc import Sequence
from typing import Any

from anyformer.compare.result import Comparison, ContenderResult, Point
from anyformer.pages.formatting import finite

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
