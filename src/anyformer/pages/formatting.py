"""Numbers, settings and gains, formatted for people."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

_UNITS = ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def si(value: float | None, digits: int = 3, billion: str = "G") -> str:
    """`1.12M`; "–" for what isn't known."""
    if value is None or not math.isfinite(value):
        return "–"
    for size, letter in _UNITS:
        if abs(value) >= size * (1 - 0.5 * 10**-digits):
            return f"{_plain(value / size, digits)}{billion if letter == 'G' else letter}"
    return _plain(value, digits)


def count(value: float | None, digits: int = 3) -> str:
    """A number of tokens or weights: `124M`, `1.24B`."""
    return si(value, digits, billion="B")


def parameters(every: int | None, trained: int | None, noun: str = "") -> str:
    """`22.7M parameters, 148k trained`, with this noun; nothing where it isn't known."""
    if every is None:
        return ""
    return f"{count(every)}{noun}" if trained in (None, every) else f"{count(every)}{noun}, {count(trained)} trained"


def flops(value: float | None) -> str:
    """`1.65 TFLOP/s`."""
    return si(value) if value is None else _prefixed(value, "FLOP/s")


def byte_size(count: float) -> str:
    """Bytes: `512 bytes`, `16.8 MB`."""
    return _prefixed(count, "B" if si(count)[-1].isalpha() else "bytes")


def listed(names: Sequence[str]) -> str:
    """`gpt2, llama and t5`."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def whole(value: int | None) -> str:
    """`12,345`."""
    return "–" if value is None else f"{value:,}"


def fixed(value: float | None) -> str:
    """Four digits after the point, as a difference of a thousandth counts; "–" for what isn't known."""
    return "–" if value is None or not math.isfinite(value) else f"{value:.4f}"


def number(value: float | None) -> str:
    """Three digits after the point of a small number, fewer of a large one."""
    if value is None:
        return "–"
    size = abs(value)
    if size < 0.0005:
        return "0.000"  # not -0.000
    if size < 1000:
        return f"{value:.3f}" if size < 10 else f"{value:.1f}"
    return f"{value:,.0f}" if size < 1e7 else f"{value:.3g}"


def finite(value: float | None, digits: int | None = None) -> float | None:
    """A number for JSON, rounded to this many significant digits; None for what is none."""
    if value is None or not math.isfinite(value):
        return None
    return float(value if digits is None else f"{value:.{digits}g}")


def perplexity(nats: float | None) -> str:
    """exp of a loss."""
    if nats is None:
        return "–"
    value = math.exp(min(nats, 700.0))
    return f"{value:,.2f}" if value < 100 else f"{value:,.0f}" if value < 1e6 else f"{value:.2g}"


def share(value: float | None) -> str:
    """`41%`."""
    return "–" if value is None else f"{value:.1%}" if value < 0.1 else f"{value:.0%}"


def clock(seconds: float | None) -> str:
    """`4:05`, `2:04:05`, `3d 4h`."""
    if seconds is None or not math.isfinite(seconds):
        return "–"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours >= 48:
        return f"{hours // 24}d {hours % 24}h"
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def setting(value: Any) -> str:
    """A value of a config."""
    if value is None or value == [] or value == {} or value == "":
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list):
        return ", ".join(setting(each) for each in cast("list[Any]", value))
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {setting(each)}" for name, each in cast("Mapping[str, Any]", value).items())
    return str(value)


def _prefixed(value: float, unit: str) -> str:
    text = si(value)
    digits = text.rstrip("kMGTP")
    return f"{digits} {text[len(digits) :]}{unit}"


def _plain(value: float, digits: int) -> str:
    text = f"{value:.{digits}g}"
    return f"{float(text):g}" if "e" in text else text


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
    """A format for values with this interval, which has the digits that it bears out."""
    return number if bounds[1] - bounds[0] < 0.05 else _short


def _short(value: float) -> str:
    if round(value, 2) == 0:
        return "0.00"  # not -0.00
    return f"{value:.2f}" if abs(value) < 10 else f"{value:.1f}" if abs(value) < 1000 else number(value)
