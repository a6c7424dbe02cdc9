"""A metric and its interval: Wilson's of a proportion, the bootstrap's percentiles of all others."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Numbers = Sequence[float] | npt.NDArray[Any]

FEWEST = 30
"""Rows below which nothing is said about which of two models is better. Resamples of a few rows are too much alike: of
five that are right all are, and an interval of them would be a point."""
UNIT = (0.0, 1.0)
"""The bounds of proportions and of F1."""
_AT_A_TIME = 1 << 20
"""Counts of rows that are held at a time."""


class Interval(NamedTuple):
    """A confidence interval; NaN where there are no rows."""

    low: float
    high: float


@dataclass(frozen=True, eq=False, repr=False)
class Metric:
    """A metric that follows from sums over the rows of a data set.

    Accuracy is the sum of right answers over the sum of ones, BLEU a function of summed n-gram counts. A bootstrap
    resample only counts some rows several times and others not at all, so that the sums of all resamples are one matrix
    product.

    Args:
        rows: [rows, statistics] what each row adds to the sums.
        function: From sums [..., statistics] to values [...].
        bounds: The worst and the best value that there can be; None: it has no such bounds.
    """

    rows: Array
    function: Callable[[Array], Array]
    bounds: tuple[float, float] | None = None

    def __repr__(self) -> str:
        return f"{self.value:.4g}"

    @property
    def value(self) -> float:
        """The metric; NaN where it isn't defined."""
        return float(self.of_counts(np.ones((1, len(self.rows))))[0]) if len(self.rows) else float("nan")

    def of_counts(self, counts: Array) -> Array:
        """The metric of several resamples [resamples], from how often each row is in each [resamples, rows]."""
        return self.function(counts @ self.rows)

    def resampled(
        self, resamples: int = 1000, seed: int | np.random.Generator = 0, *, multinomial: bool = False
    ) -> Array:
        """The metric of each bootstrap resample [resamples]; nothing where there are no rows.

        Metrics of as many rows see the same resamples.

        Args:
            seed: Of the drawing, or a generator of random numbers.
            multinomial: Draw how often each row is taken instead of rows: other numbers of the same distribution, with
                which comparisons have always been made.
        """
        rng = np.random.default_rng(seed)
        values = [self.of_counts(counts) for counts in _counts(len(self.rows), resamples, rng, multinomial)]
        return np.concatenate(values) if values else np.empty(0)

    def interval(self, confidence: float = 0.95, resamples: int = 1000, seed: int = 0) -> Interval:
        """Wilson's interval of a proportion, else that of the percentile bootstrap over rows.

        The bootstrap is that of Efron & Tibshirani 1993, chapter 13. Where all resamples are the same, it knows
        nothing: at one of its bounds a metric has Wilson's interval for as many rows, all right or all wrong, and
        elsewhere none (NaN).
        """
        if self.function is _quotient and self.bounds == UNIT:
            right, weights = self.rows.T
            if (weights == 1).all() and np.isin(right, (0, 1)).all():
                return wilson(self.value, len(self.rows), confidence)
        sampled = percentiles(self.resampled(resamples, seed), confidence)
        if sampled.high - sampled.low > 1e-9 * abs(sampled.high) or np.isnan(sampled.low):
            return sampled
        low, high = self.bounds or (np.nan, np.nan)
        position = (sampled.low - low) / (high - low)
        if not np.isclose(position, (0, 1)).any():
            return Interval(np.nan, np.nan)
        bounds = wilson(round(position), int(self.rows.any(axis=1).sum()), confidence)
        return Interval(*(low + (high - low) * bound for bound in bounds))

    def difference(self, after: "Metric", confidence: float = 0.95, resamples: int = 1000, seed: int = 0) -> Interval:
        """The interval of how much another model gains on the same rows (paired); raises ValueError for others."""
        if len(self.rows) != len(after.rows):
            raise ValueError(f"paired metrics are of the same rows, not of {len(self.rows)} and {len(after.rows)}")
        return percentiles(after.resampled(resamples, seed) - self.resampled(resamples, seed), confidence)


def mean(values: Numbers) -> Metric:
    """The mean of a number for each row."""
    return ratio(values, np.ones(np.shape(values)))


def share(values: Numbers) -> Metric:
    """The mean of a number from 0, wrong, to 1, right, for each row."""
    return replace(mean(values), bounds=UNIT)


def ratio(numerators: Numbers, denominators: Numbers) -> Metric:
    """The sum of a number for each row divided by the sum of another."""
    return Metric(np.stack([numerators, denominators], axis=-1).astype(np.float64), _quotient)


def _quotient(sums: Array) -> Array:
    return divide(sums[..., 0], sums[..., 1], undefined=np.nan)


def divide(numerator: Array, denominator: Array, undefined: float = 0.0) -> Array:
    """The quotient, and `undefined` where the denominator is 0."""
    safe = np.where(denominator == 0, 1.0, denominator)
    return np.where(denominator == 0, undefined, numerator / safe)


def wilson(share: float, count: int, confidence: float = 0.95) -> Interval:
    """The interval of a proportion that was seen as a share of so many rows (Wilson 1927); NaN where there are none."""
    if not count:
        return Interval(float("nan"), float("nan"))
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * np.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return Interval(max(0.0, float(middle - half)), min(1.0, float(middle + half)))


def _counts(rows: int, resamples: int, rng: np.random.Generator, multinomial: bool) -> Iterator[Array]:
    """Counts of the rows that were drawn, [some resamples, rows]; as many rows are drawn as there are."""
    size = max(1, _AT_A_TIME // max(1, rows))
    for begin in range(0, resamples if rows else 0, size):
        count = min(size, resamples - begin)
        if multinomial:
            yield rng.multinomial(rows, np.full(rows, 1 / rows), count).astype(np.float64)
        else:
            drawn = rng.integers(rows, size=(count, rows)) + rows * np.arange(count)[:, None]
            yield np.bincount(drawn.ravel(), minlength=count * rows).reshape(count, rows).astype(np.float64)


def percentiles(values: Array, confidence: float = 0.95) -> Interval:
    """The interval that holds this share of the values, as much being below it as above; NaN is left out."""
    numbers = values[~np.isnan(values)]
    if not len(numbers):
        return Interval(float("nan"), float("nan"))
    low, high = np.quantile(numbers, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(float(low), float(high))
