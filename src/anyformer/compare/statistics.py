"""How sure a difference is: paired bootstrap over held-out pieces, noise of the seeds, and Holm's correction."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt

from anyformer.evaluation.metrics.metric import percentiles, ratio

Float64 = npt.NDArray[np.float64]

CONFIDENCE = 0.95
ALPHA = 1 - CONFIDENCE
_RESAMPLES = 10_000


@dataclass(frozen=True, eq=False)
class Pieces:
    """The numbers of one contender, piece by piece.

    A measure is the ratio of two sums over pieces: nats and bytes, or right answers and questions.

    Attributes:
        totals: [seeds, pieces] such as the nats of each held-out piece.
        weights: [pieces] such as its bytes; the same for every contender that this one is compared with.
    """

    totals: Float64
    weights: Float64

    @classmethod
    def of_items(cls, items: Sequence[Sequence[float]]) -> Self:
        """Items of equal weight, such as right and wrong answers, by seed."""
        totals = np.array(items, dtype=np.float64)
        return cls(totals, np.ones(totals.shape[1]))

    @property
    def seeds(self) -> Float64:
        """[seeds] the measure of each seed."""
        return self.totals.sum(axis=1) / self.weights.sum()

    @property
    def value(self) -> float:
        """The mean over seeds."""
        return float(self.seeds.mean())


@dataclass(frozen=True)
class Estimate:
    """A value, its 95% interval, and the two-sided p of its being 0."""

    value: float
    interval: tuple[float, float]
    p: float


def estimate(pieces: Pieces, *, seed: int = 0) -> Estimate:
    """The noise band of a measure.

    Two things could have come out differently, and are resampled together: the pieces that were held out, by a
    bootstrap (Efron & Tibshirani 1993, chapter 6; for language models Koehn 2004), and the seeds, of which there are
    few, so that their mean is taken to be off by a draw from Student's t. Of one seed the noise is not known, and only
    the pieces' is in the band.

    Args:
        seed: of the resampling.
    """
    draws = _resample(pieces, seed)
    below, above = int((draws <= 0).sum()), int((draws >= 0).sum())
    p = min(1.0, 2 * (min(below, above) + 1) / (len(draws) + 1))
    return Estimate(pieces.value, percentiles(draws, CONFIDENCE), p)


def difference(a: Pieces, b: Pieces, *, seed: int = 0) -> Estimate:
    """The estimate of a's measure less b's, on the same pieces and the same seeds.

    It is paired: what makes a piece hard for both, or an order of the data good for both, is no noise.

    Raises:
        ValueError: they are of different pieces or of different numbers of seeds.
    """
    if a.totals.shape != b.totals.shape or not np.array_equal(a.weights, b.weights):
        raise ValueError("only numbers of the same pieces and the same seeds can be compared")
    return estimate(Pieces(a.totals - b.totals, a.weights), seed=seed)


def holm(p: Sequence[float]) -> list[float]:
    """Values of p corrected for their number (Holm 1979): below 0.05 they hold together, with 95% confidence."""
    corrected, largest = [0.0] * len(p), 0.0
    for rank, index in enumerate(sorted(range(len(p)), key=p.__getitem__)):
        largest = max(largest, min(1.0, (len(p) - rank) * p[index]))
        corrected[index] = largest
    return corrected


def _resample(pieces: Pieces, seed: int) -> Float64:
    """[resamples] what the measure could have been."""
    rng = np.random.default_rng(seed)
    draws = ratio(pieces.totals.mean(axis=0), pieces.weights).resampled(_RESAMPLES, rng, multinomial=True)
    seeds = len(pieces.totals)
    if seeds > 1:
        spread = float(pieces.seeds.std(ddof=1)) / np.sqrt(seeds)
        draws += spread * rng.standard_t(seeds - 1, len(draws))
    return draws
