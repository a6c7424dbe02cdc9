"""Gains of a run, formatted for people."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from anyformer.pages.formatting import number


def interval(bounds: Sequence[float] | None) -> str:
    """` [0.85, 0.90]`; nothing where it isn't known."""
    return "" if bounds is None else f" [{', '.join(map(_digits(bounds), bounds))}]"


def points(figure: Mapping[str, Any]) -> str:
    """`+0.36 [0.33, 0.40]`, and whether that may be chance; nothing where it isn't known. See `report.result`."""
    bounds = figure["difference"]
    if figure["before"] is None or figure["after"] is None or bounds is None:
        return ""
    gain = figure["after"] - figure["before"]
    apart = ": not distinguishable" if figure["distinguishable"] is False else ""
    return f"{'+' * (gain >= 0)}{_digits(bounds)(gain)}{interval(bounds)}{apart}"


def gained(figure: Mapping[str, Any]) -> str:
    """`0.512 -> 0.874 [0.85, 0.90], +0.36 [0.33, 0.40]`."""
    after = f"{number(figure['after'])}{interval(figure['interval'])}"
    before = "" if figure["before"] is None else f"{number(figure['before'])} -> "
    return ", ".join(filter(None, (before + after, points(figure))))


def general(figure: Mapping[str, Any]) -> str:
    """`21.3 -> 23.9 (+12%)`."""
    before, after = figure["before"], figure["after"]
    if before is None or after is None:
        return "unknown" if after is None else number(after)
    change = (after - before) / before
    shown = f"{change:+.0%}" if abs(change) >= 0.1 else f"{change:+.1%}"
    apart = ": not distinguishable" if figure["distinguishable"] is False else ""
    return f"{number(before)} -> {number(after)} ({shown}){apart}"


def _digits(bounds: Sequence[float]) -> Callable[[float], str]:
    """How to write a value that is known as exactly as its interval says."""
    return number if bounds[1] - bounds[0] < 0.05 else _short


def _short(value: float) -> str:
    if round(value, 2) == 0:
        return "0.00"  # not -0.00
    return f"{value:.2f}" if abs(value) < 10 else f"{value:.1f}" if abs(value) < 1000 else number(value)
