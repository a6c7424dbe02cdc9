"""The bootstrap: its intervals are those of resamples by hand, and they cover what they promise."""

import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from anyformer.evaluation.metrics import Metric, classification, mean, ratio, similarity
from anyformer.evaluation.metrics.metric import _counts


def _resampled(rows: int, count: int, seed: int = 0) -> list[np.ndarray]:
    """The rows of each resample, as many times as it counts them."""
    return [np.repeat(np.arange(rows), each.astype(int)) for part in _counts(rows, count, seed) for each in part]


@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=30), st.integers(0, 5))
def test_an_interval_is_that_of_the_resamples(values: list[float], seed: int) -> None:
    array = np.array(values)
    by_hand = [array[rows].mean() for rows in _resampled(len(values), 200, seed)]
    low, high = mean(values).interval(confidence=0.9, resamples=200, seed=seed)
    assert (low, high) == pytest.approx(tuple(np.quantile(by_hand, [0.05, 0.95])), rel=1e-9, abs=1e-9)


def test_each_resample_has_as_many_rows_as_there_are() -> None:
    resamples = _resampled(50, 4000)
    assert len(resamples) == 4000
    assert all(len(rows) == 50 for rows in resamples)
    counts = np.bincount(np.concatenate(resamples), minlength=50)
    assert counts.mean() == 4000
    assert (np.abs(counts - 4000) < 5 * 4000**0.5).all()
    assert len({rows.tobytes() for rows in resamples}) == 4000


def test_large_data_sets_are_resampled_in_parts() -> None:
    parts = list(_counts(600_000, 3, 0))
    assert [len(part) for part in parts] == [1, 1, 1]
    assert not np.array_equal(parts[0], parts[1])


def test_intervals_cover_what_they_promise() -> None:
    rng = np.random.default_rng(1)
    inside = 0
    for seed in range(300):
        low, high = mean(rng.random(100) < 0.8).interval(resamples=300, seed=seed)
        inside += low <= 0.8 <= high
    assert 0.90 < inside / 300 < 0.99


def test_a_paired_difference_is_narrower_than_its_parts() -> None:
    rng = np.random.default_rng(0)
    before = rng.random(500)
    after = before + 0.01 + 0.01 * rng.random(500)
    low, high = mean(before).difference(mean(after))
    assert 0.01 < low < high < 0.02
    with pytest.raises(ValueError, match="500 and 499"):
        mean(before).difference(mean(after[1:]))


def test_of_no_rows_there_is_no_interval() -> None:
    assert np.isnan(mean([]).value)
    assert np.isnan(mean([]).interval()).all()
    assert np.isnan(ratio([1, 2], [0, 0]).value)
    assert np.isnan(ratio([1, 2], [0, 0]).interval()).all()


def test_the_same_seed_gives_the_same_interval() -> None:
    metric = mean(np.random.default_rng(0).random(40))
    assert metric.interval() == metric.interval()
    assert metric.interval() != metric.interval(seed=1)


@pytest.mark.parametrize("name", ["accuracy", "mcc", "spearman"])
def test_a_thousand_resamples_of_a_thousand_rows_are_quick(name: str) -> None:
    rng = np.random.default_rng(0)
    x, y = rng.integers(2, size=(2, 1000))
    metrics: dict[str, Metric] = classification([*map(str, x)], [*map(str, y)]) | similarity(x, y + rng.random(1000))
    begin = time.process_time()
    metrics[name].interval()
    assert time.process_time() - begin < 3
