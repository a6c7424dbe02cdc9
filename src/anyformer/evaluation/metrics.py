"""Metrics: pure functions of references and predictions, which give a value and its interval.

The interval is Wilson's of a proportion, the bootstrap's percentiles of all others. Functions return `Metric` objects
by the names under which `anyformer.evaluate` reports them; those of labels are in `label_metrics`::

    metrics = similarity([0.1, 0.7, 0.9], [0.2, 0.5, 0.8])
    metrics["spearman"].value, metrics["spearman"].interval()
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from typing_extensions import override

from anyformer.errors import library

Array = npt.NDArray[np.float64]
Numbers = Sequence[float] | npt.NDArray[Any]

FEWEST = 30
"""Rows below which nothing is said about which of two models is better. Resamples of a few rows are too much alike: of
five that are right all are, and an interval of them would be a point."""
UNIT = (0.0, 1.0)
"""The bounds of proportions and of F1."""
_AT_A_TIME = 1 << 20
"""Counts of rows that are held at a time."""
_CUTOFFS = (1, 5, 10)
"""Numbers of documents among which recall is looked for."""
_ROUGE = ("rouge1", "rouge2", "rougeL", "rougeLsum")


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


def similarity(references: Numbers, predictions: Numbers) -> dict[str, Metric]:
    """Spearman's and Pearson's correlation; NaN where all references or all predictions are the same."""
    x, y = (np.asarray(numbers, dtype=np.float64) for numbers in (references, predictions))
    return {
        "spearman": _Spearman(np.stack([x, y], axis=-1), _correlation, (-1.0, 1.0)),
        "pearson": Metric(_moments(_standardized(x), _standardized(y)), _correlation, (-1.0, 1.0)),
    }


def regression(references: Numbers, predictions: Numbers) -> dict[str, Metric]:
    """The correlations, and the mean squared error."""
    errors = np.square(np.subtract(references, predictions, dtype=np.float64))
    return similarity(references, predictions) | {"mse": mean(errors)}


class _Spearman(Metric):
    """The correlation of ranks, which are others in each resample."""

    @override
    def of_counts(self, counts: Array) -> Array:
        middle = (len(self.rows) + 1) / 2
        x, y = (_ranks(column, counts) - middle for column in self.rows.T)
        return self.function(np.einsum("br,brs->bs", counts, _moments(x, y)))


def _ranks(values: Array, counts: Array) -> Array:
    """The rank of each row [resamples, rows], from 1, where it counts several times; equal ones share their mean."""
    order = np.argsort(values, kind="stable")
    _, starts, group = np.unique(values, return_index=True, return_inverse=True)
    starts = np.searchsorted(values[order], values[starts])
    tied = np.add.reduceat(counts[:, order], starts, axis=1)
    return (tied.cumsum(axis=1) - (tied - 1) / 2)[:, group]


def _standardized(values: Array) -> Array:
    """Values with mean 0 and largest magnitude 1, so that sums of squares are exact; zeros if all are the same."""
    if not len(values) or (values == values[0]).all():
        return np.zeros_like(values)
    centered = values - values.mean()
    return centered / np.abs(centered).max()


def _moments(x: Array, y: Array) -> Array:
    return np.stack([np.ones_like(x), x, y, x * x, y * y, x * y], axis=-1)


def _correlation(sums: Array) -> Array:
    rows, x, y, xx, yy, xy = np.moveaxis(sums, -1, 0)
    variances = np.maximum(rows * xx - x * x, 0) * np.maximum(rows * yy - y * y, 0)
    return np.clip(divide(rows * xy - x * y, np.sqrt(variances), undefined=np.nan), -1, 1)


def retrieval(ranks: Sequence[Numbers]) -> dict[str, Metric]:
    """Recall@k and the mean reciprocal rank, of the ranks of each query's relevant documents, see `relevant_ranks`."""
    rows = [np.asarray(each) for each in ranks]
    recalls = {f"recall@{k}": share([(each <= k).mean() for each in rows]) for k in _CUTOFFS}
    return recalls | {"mrr": share([1 / each.min() for each in rows])}


def relevant_ranks(
    queries: Array, documents: Array, relevant: Sequence[Sequence[int]], batch_size: int = 1024
) -> list[npt.NDArray[np.int64]]:
    """For each query the ranks of its relevant documents among all documents by cosine similarity, from 1.

    Documents of equal similarity are ranked in their order.

    Args:
        relevant: For each query the indices of at least one document.
        batch_size: Queries whose similarities are held at a time.
    """
    queries, documents = (unit(vectors) for vectors in (queries, documents))
    ranks: list[npt.NDArray[np.int64]] = []
    for begin in range(0, len(queries), batch_size):
        similarities = queries[begin : begin + batch_size] @ documents.T
        for row, documents_of_row in zip(similarities, relevant[begin : begin + batch_size], strict=True):
            rank = np.empty(len(row), dtype=np.int64)
            rank[np.argsort(-row, kind="stable")] = np.arange(1, len(row) + 1)
            ranks.append(np.sort(rank[list(documents_of_row)]))
    return ranks


def unit(vectors: Array) -> Array:
    """The vectors at length 1; zeros stay zeros."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)


def exact_match(references: Sequence[str], predictions: Sequence[str]) -> Metric:
    """The share of texts that are their reference, but for whitespace around them."""
    return share([right.strip() == text.strip() for right, text in zip(references, predictions, strict=True)])


def translation(references: Sequence[str], predictions: Sequence[str]) -> dict[str, Metric]:
    """BLEU and chrF as sacrebleu's defaults define them, from 0 to 100. Raises UserError where it isn't installed."""
    metrics = library("sacrebleu.metrics", "Scoring by BLEU and chrF", "eval", "sacrebleu")
    scorers = {"bleu": metrics.BLEU(force=True), "chrf": metrics.CHRF()}
    return {name: _corpus_metric(scorer, references, predictions) for name, scorer in scorers.items()}


def summaries(references: Sequence[str], predictions: Sequence[str]) -> dict[str, Metric]:
    """ROUGE-1, -2, -L and -Lsum (mean F1 of the rows, without stemming) as rouge-score defines them, from 0 to 1.

    Only the letters a to z and digits count. For ROUGE-Lsum each line is a sentence. Raises UserError where rouge-score
    isn't installed.
    """
    scorer = library("rouge_score.rouge_scorer", "ROUGE", "eval", "rouge-score").RougeScorer(list(_ROUGE))
    scores = [scorer.score(right, text) for right, text in zip(references, predictions, strict=True)]
    return {name: share([score[name].fmeasure for score in scores]) for name in _ROUGE}


def _corpus_metric(scorer: Any, references: Sequence[str], predictions: Sequence[str]) -> Metric:
    """One of sacrebleu's metrics. Its own bootstrap sums the counts of each row in the same way."""
    rows = np.array(scorer._extract_corpus_statistics(predictions, [references]), dtype=np.float64)

    def scores(sums: Array) -> Array:
        counts = sums.round().astype(np.int64).tolist()
        return np.array([scorer._compute_score_from_stats(each).score for each in counts])

    return Metric(rows, scores, (0.0, 100.0))


def language_model(nats: Numbers, tokens: Numbers, size: Numbers | None = None) -> dict[str, Metric]:
    """Perplexity, the exponential of the mean loss of a token, and bits per byte.

    Args:
        nats: The summed loss of each row.
        tokens: How many of its tokens were predicted.
        size: Bytes of its text in UTF-8; None: there are no bits per byte.
    """
    metrics = {"perplexity": Metric(np.stack([nats, tokens], axis=-1).astype(np.float64), _perplexity)}
    if size is not None:
        metrics["bits_per_byte"] = ratio(np.divide(nats, np.log(2)), size)
    return metrics


def _perplexity(sums: Array) -> Array:
    return np.exp(np.minimum(_quotient(sums), 700))
