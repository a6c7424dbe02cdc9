"""Correlations, against scipy's."""

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import stats

from anyformer.evaluation.metrics import regression, relevant_ranks, retrieval, similarity

NUMBERS = st.one_of(st.integers(0, 3).map(float), st.floats(-1e3, 1e3).map(lambda number: round(number, 3)))
PAIRS = st.lists(st.tuples(NUMBERS, NUMBERS), min_size=2, max_size=40)


def _vary(*columns: np.ndarray) -> bool:
    return all(len(set(column)) > 1 for column in columns)


@given(PAIRS, st.sampled_from([0.0, 1e6]))
def test_correlations_are_scipys(pairs: list[tuple[float, float]], offset: float) -> None:
    x, y = np.array(pairs).T
    assume(_vary(x, y))
    found = similarity(x + offset, y)
    assert found["spearman"].value == pytest.approx(stats.spearmanr(x + offset, y).statistic, abs=1e-6)
    assert found["pearson"].value == pytest.approx(stats.pearsonr(x, y).statistic, abs=1e-6)


@given(PAIRS, st.integers(0, 9))
def test_correlations_of_resamples_are_those_of_the_rows(pairs: list[tuple[float, float]], seed: int) -> None:
    x, y = np.array(pairs).T
    counts = np.random.default_rng(seed).integers(3, size=len(x))
    # The ranks are those of as many rows as there are.
    counts[0] += len(x) - counts.sum()
    assume(counts[0] >= 0)
    drawn = x.repeat(counts), y.repeat(counts)
    assume(_vary(*drawn))
    for name, metric in similarity(x, y).items():
        assert metric.of_counts(counts[None].astype(float))[0] == pytest.approx(
            similarity(*drawn)[name].value, abs=1e-6
        )


def test_what_is_constant_has_no_correlation() -> None:
    for metric in similarity([0.1, 0.1, 0.1], [1, 2, 3]).values():
        assert np.isnan(metric.value)


def test_the_squared_error() -> None:
    assert regression([1, 2], [2, 4])["mse"].value == 2.5


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
