"""Curves of runs as the page's script draws them: plain numbers, few enough for a browser.

A chart's data is ``{"axes": [{"step", "time", "tokens"}], "charts": [{"title", "series": [...], ...}]}``: each series
names the axis that its values stand over. What is not a finite number is None, and leaves a gap.
"""

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import numpy as np

from anyformer.pages.formatting import finite
from anyformer.runs.listing import Line, Run, flops_per_second, number

Values = list[float | None]

_BUCKETS = 300
_FEW = 25
"""Lines below which a smoothed curve would say nothing that the raw one doesn't."""

_WINDOW = 40
"""A smoothed value is the mean over this part of the run's lines on either side."""


def report_data(run: Run) -> dict[str, Any]:
    """The charts of one run's page."""
    names = ("loss", "tokens_per_second", "gradient_norm", "learning_rate")
    loss, speed, norm, rate = (_column(run.steps, name) for name in names)
    reached = [flops_per_second(run.header, line) for line in run.steps]
    kept = thin([loss, speed, norm])
    axes = [_axis(run, [run.steps[index] for index in kept]), _axis(run, run.evaluations)]
    validation = series("validation", 1, 1, _column(run.evaluations, "validation_loss"), "points")
    peak = finite(number(run.header, "peak_flops_per_second"), 6)
    marks = [] if peak is None else [{"y": peak, "label": "measured peak"}]
    charts = [
        chart("Loss", "loss", [*_curve("training", loss, kept), validation], note=run.terms.loss, scaled=True),
        chart("Learning rate", "rate", [series("rate", 0, 0, _at(rate, kept))], zero=True),
        chart("Speed", "count", _curve("tokens/s", speed, kept), note="tokens per second", zero=True),
        chart("Gradient norm", "number", _curve("norm", norm, kept), note="before clipping", scaled=True),
        chart("Arithmetic", "flops", _curve("reached", reached, kept), note="FLOP/s", zero=True, marks=marks),
    ]
    return {"axes": axes, "charts": [each for each in charts if each["series"]]}


def comparison_data(runs: Sequence[Run]) -> dict[str, Any]:
    """The charts of a page on several runs: their curves over each other."""
    axes: list[dict[str, Values]] = []
    validation, training, speed = [list[dict[str, Any]]() for _ in range(3)]
    for color, run in enumerate(runs):
        kept = thin([_column(run.steps, name) for name in ("loss", "tokens_per_second")])
        index = len(axes)
        axes += [_axis(run, [run.steps[index] for index in kept]), _axis(run, run.evaluations)]
        scores = _column(run.evaluations, "validation_loss")
        validation.append(series(run.name, index + 1, color, scores, "points"))
        for drawn, name in ((training, "loss"), (speed, "tokens_per_second")):
            smooth = smoothed(_column(run.steps, name)) if len(run.steps) >= _FEW else _column(run.steps, name)
            drawn.append(series(run.name, index, color, _at(smooth, kept)))
    units = {run.terms.loss for run in runs}
    unit = units.pop() if len(units) == 1 else ""
    charts = [
        chart("Validation loss", "loss", validation, note=unit, scaled=True),
        chart("Training loss", "loss", training, note="smoothed", scaled=True),
        chart("Speed", "count", speed, note="tokens per second", zero=True),
    ]
    return {"axes": axes, "charts": [each for each in charts if each["series"]]}


def thin(columns: Sequence[Values], buckets: int = _BUCKETS) -> list[int]:
    """Indices of lines that show the same curves: in each stretch the extremes of each column, and both ends.

    The columns are of equal length; buckets is the number of stretches.
    """
    count = len(columns[0]) if columns else 0
    if count <= 2 * buckets:
        return list(range(count))
    kept = {0, count - 1}
    for bucket in range(buckets):
        stretch = range(bucket * count // buckets, (bucket + 1) * count // buckets)
        for column in columns:
            values = [(value, index) for index in stretch if (value := column[index]) is not None]
            kept |= {min(values)[1], max(values)[1]} if values else {stretch[0]}
    return sorted(kept)


def smoothed(values: Values, window: int | None = None) -> Values:
    """A weighted mean over neighbors on both sides, over fewer at the start, where a steep fall is to stay in place.

    None is left out of the means. The window is the number of neighbors on either side; None: a fortieth of the series.
    """
    reach = max(1, len(values) // _WINDOW) if window is None else window
    # The mean of means weighs near neighbors more, so that a single spike makes no plateau.
    return _means(_means(values, reach), reach)


def _means(values: Values, reach: int) -> Values:
    sums = [0.0, *accumulate(value or 0.0 for value in values)]
    counts = [0, *accumulate(int(value is not None) for value in values)]
    means: Values = []
    for index, value in enumerate(values):
        near = min(reach, index)
        low, high = index - near, min(len(values), index + near + 1)
        # A line without a value has no mean either: the curve shows the gap.
        means.append(None if value is None else (sums[high] - sums[low]) / (counts[high] - counts[low]))
    return means


def _curve(name: str, values: Values, kept: Sequence[int]) -> list[dict[str, Any]]:
    """A raw series, and over it the smoothed one where there is something to smooth."""
    if len(values) < _FEW:
        return [series(name, 0, 0, values)]
    return [series(name, 0, 0, _at(values, kept), "faint"), series(name, 0, 0, _at(smoothed(values), kept))]


def series(name: str, axis: int, color: int, values: Values, style: str = "line") -> dict[str, Any]:
    """A curve of a chart: line, points, faint, or that of one seed of several."""
    return {"name": name, "axis": axis, "color": color, "style": style, "y": [finite(value, 6) for value in values]}


def chart(title: str, form: str, curves: list[dict[str, Any]], **options: Any) -> dict[str, Any]:
    """A chart; `zero`: its axis begins there; `scaled`: it follows the choice of scale."""
    drawn = [each for each in curves if any(value is not None for value in each["y"])]
    fields = {"title": title, "note": "", "format": form, "zero": False, "scaled": False, "series": drawn, "marks": []}
    return fields | options


def _axis(run: Run, lines: Sequence[Line]) -> dict[str, Values]:
    """Positions of lines by step, by time in seconds and by tokens."""
    return {
        "step": [float(line["step"]) for line in lines],
        "time": [finite(value, 6) for value in _column(lines, "elapsed")],
        "tokens": [finite(value, 9) for value in tokens_at(run, lines)],
    }


def tokens_at(run: Run, lines: Sequence[Line]) -> Values:
    """The tokens read before each line. Evaluations don't record them: theirs lie between those of two steps."""
    counts = [(line["step"], tokens) for line in run.steps if (tokens := number(line, "tokens")) is not None]
    steps, tokens = zip((0, 0.0), *counts, strict=True)  # at step 0 none
    places = [line["step"] for line in lines]
    between = np.interp(places, steps, tokens).tolist() if counts else [None if step else 0.0 for step in places]
    return [value if own is None else own for own, value in zip(_column(lines, "tokens"), between, strict=True)]


def _column(lines: Sequence[Line], name: str) -> Values:
    return [number(line, name) for line in lines]


def _at(values: Values, kept: Sequence[int]) -> Values:
    return [values[index] for index in kept]
