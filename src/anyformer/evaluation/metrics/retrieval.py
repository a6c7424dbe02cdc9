"""Queries and the documents that answer them: recall among the first k, and the mean reciprocal rank."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from anyformer.evaluation.metrics.metric import Array, Metric, Numbers, share

CUTOFFS = (1, 5, 10)


def retrieval(ranks: Sequence[Numbers], cutoffs: Sequence[int] = CUTOFFS) -> dict[str, Metric]:
    """Recall@k and the mean reciprocal rank.

    Args:
        ranks: For each query the ranks of its relevant documents, see `relevant_ranks`.
    """
    found = [np.asarray(each) for each in ranks]
    recalls = {f"recall@{k}": share([(each <= k).mean() for each in found]) for k in cutoffs}
    return recalls | {"mrr": share([1 / each.min() for each in found])}


def relevant_ranks(
    queries: Array, documents: Array, relevant: Sequence[Sequence[int]], batch_size: int = 1024
) -> list[npt.NDArray[np.int64]]:
    """For each query the ranks of its relevant documents among all documents by cosine similarity, from 1.

    Documents of equal similarity are ranked in their order.

    Args:
        queries: [queries, d_model] vectors.
        documents: [documents, d_model] vectors.
        relevant: For each query the indices of at least one document.
        batch_size: Queries whose similarities are held at a time.
    """
    queries, documents = (unit(vectors) for vectors in (queries, documents))
    ranks: list[npt.NDArray[np.int64]] = []
    for begin in range(0, len(queries), batch_size):
        similarities = queries[begin : begin + batch_size] @ documents.T
        for row, wanted in zip(similarities, relevant[begin : begin + batch_size], strict=True):
            place = np.empty(len(row), dtype=np.int64)
            place[np.argsort(-row, kind="stable")] = np.arange(1, len(row) + 1)
            ranks.append(np.sort(place[list(wanted)]))
    return ranks


def unit(vectors: Array) -> Array:
    """The vectors at length 1; zeros stay zeros."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)
