"""Ranks of documents, against sorting by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from anyformer.evaluation.metrics import relevant_ranks, retrieval


@given(st.integers(0, 10**6), st.integers(1, 6), st.integers(1, 9), st.integers(1, 3))
def test_ranks_are_places_in_the_sorted_list(seed: int, queries: int, documents: int, batch_size: int) -> None:
    rng = np.random.default_rng(seed)
    # Small integers, so that some are equally similar.
    x, y = rng.integers(1, 3, (queries, 2)).astype(float), rng.integers(1, 3, (documents, 2)).astype(float)
    wanted = [rng.choice(documents, rng.integers(1, documents + 1), replace=False).tolist() for _ in range(queries)]
    ranks = relevant_ranks(x, y, wanted, batch_size)
    assert len(ranks) == queries
    for query, relevant, found in zip(x, wanted, ranks, strict=True):
        cosines = (y @ query) / np.linalg.norm(y, axis=1) / np.linalg.norm(query)
        order = sorted(range(documents), key=lambda index: (-round(cosines[index], 9), index))
        assert sorted(order.index(index) + 1 for index in relevant) == found.tolist()


def test_recall_and_reciprocal_rank() -> None:
    found = {name: metric.value for name, metric in retrieval([[1], [3], [2, 7], [12]]).items()}
    assert found == pytest.approx(
        {"recall@1": 1 / 4, "recall@5": 2.5 / 4, "recall@10": 3 / 4, "mrr": (1 + 1 / 3 + 1 / 2 + 1 / 12) / 4}
    )
