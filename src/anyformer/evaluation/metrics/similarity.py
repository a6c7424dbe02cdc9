"""A number for each row: correlations and squared errors; and ranks of the documents that answer a query."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from typing_extensions import override

from anyformer.evaluation.metrics.metric import Array, Metric, Numbers, divide, mean, share


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


_CUTOFFS = (1, 5, 10)


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
