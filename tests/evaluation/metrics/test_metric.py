"""The bootstrap: its intervals are those of resamples by hand, and they cover what they promise."""

import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from anyformer.evaluation.metrics import Metric, classification, language_model, mean, ratio, share, similarity, tagging
from anyformer.evaluation.metrics.metric import _counts


def _resampled(rows: int, count: int, seed: int = 0, *, multinomial: bool = False) -> list[np.ndarray]:
    """The rows of each resample, as many times as it counts them."""
    parts = _counts(rows, count, np.random.default_rng(seed), multinomial)
    return [np.repeat(np.arange(rows), each.astype(int)) for part in parts for each in part]


@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=30), st.integers(0, 5))
def test_an_interval_is_that_of_the_resamples(values: list[float], seed: int) -> None:
    array = np.array(values)
    by_hand = [array[rows].mean() for rows in _resampled(len(values), 200, seed)]
    low, high = mean(values).interval(confidence=0.9, resamples=200, seed=seed)
    if np.ptp(by_hand) < 1e-9 * abs(by_hand[0]) or not any(by_hand):
        assert np.isnan([low, high]).all()  # rows that are all the same say nothing about others
        return
    assert (low, high) == pytest.approx(tuple(np.quantile(by_hand, [0.05, 0.95])), rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("multinomial", [False, True])
def test_each_resample_has_as_many_rows_as_there_are(multinomial: bool) -> None:
    resamples = _resampled(50, 4000, multinomial=multinomial)
    assert len(resamples) == 4000
    assert all(len(rows) == 50 for rows in resamples)
    counts = np.bincount(np.concatenate(resamples), minlength=50)
    assert counts.mean() == 4000
    assert (np.abs(counts - 4000) < 5 * 4000**0.5).all()
    assert len({rows.tobytes() for rows in resamples}) == 4000


def test_large_data_sets_are_resampled_in_parts() -> None:
    parts = list(_counts(600_000, 3, np.random.default_rng(0), False))
    assert [len(part) for part in parts] == [1, 1, 1]
    assert not np.array_equal(parts[0], parts[1])


def test_intervals_cover_what_they_promise() -> None:
    rng = np.random.default_rng(1)
    inside = 0
    for seed in range(300):
        low, high = mean((rng.random(100) < 0.8) + 0.0).interval(resamples=300, seed=seed)
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


@given(st.integers(1, 400), st.floats(0, 1), st.sampled_from([0.9, 0.95]))
def test_a_proportion_has_wilsons_interval(rows: int, rate: float, confidence: float) -> None:
    right = round(rate * rows)
    metric = share([True] * right + [False] * (rows - right))
    expected = stats.binomtest(right, rows).proportion_ci(confidence, method="wilson")
    assert metric.interval(confidence) == pytest.approx((expected.low, expected.high), abs=1e-9)
    assert metric.interval(confidence).low < metric.value + 1e-12
    assert mean([0.5] * rows).interval(confidence) == pytest.approx((np.nan, np.nan), nan_ok=True)


@pytest.mark.parametrize("rows", [3, 40])
def test_what_is_right_in_all_rows_has_an_interval(rows: int) -> None:
    """All resamples are 1 then, and 1 to 1 would be the interval of three rows as of three million."""
    labels = ["a", "b", "c"] * rows
    tags = [["B-x", "O"], ["O", "B-y"], ["B-x", "B-y"]] * rows
    found = {**classification(labels, labels), **{f"tag {name}": each for name, each in tagging(tags, tags).items()}}
    expected = stats.binomtest(3 * rows, 3 * rows).proportion_ci(method="wilson").low
    for name, metric in found.items():
        low, high = metric.interval()
        assert (metric.value, high) == pytest.approx((1.0, 1.0))
        assert low == pytest.approx(expected if name != "mcc" else 2 * expected - 1)
    other = ["b", "c", "a"] * rows
    low, high = classification(labels, other)["f1"].interval()
    assert (low, high) == pytest.approx((0.0, 1 - expected))
    assert np.isnan(language_model([2.0] * rows, [1] * rows)["perplexity"].interval()).all()
