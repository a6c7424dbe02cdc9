"""Metrics and their intervals: those of resamples by hand, and of scipy, sacrebleu and rouge-score."""

import math
import sys
import time

import numpy as np
import pytest
import sacrebleu
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer
from scipy import stats

from anyformer.errors import UserError
from anyformer.evaluation.label_metrics import classification, tagging
from anyformer.evaluation.metrics import (
    Metric,
    _counts,
    exact_match,
    language_model,
    mean,
    ratio,
    regression,
    relevant_ranks,
    retrieval,
    share,
    similarity,
    summaries,
    translation,
)


def _resampled(rows: int, count: int, seed: int = 0, *, multinomial: bool = False) -> list[np.ndarray]:
    """The rows of each resample, as many times as it counts them."""
    parts = _counts(rows, count, np.random.default_rng(seed), multinomial)
    return [np.repeat(np.arange(rows), each.astype(int)) for part in parts for each in part]


@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=30), st.integers(0, 5))
def test_an_interval_is_that_of_the_resamples(values: list[float], seed: int) -> None:
    array = np.array(values)
    by_hand = [array[rows].mean() for rows in _resampled(len(values), 200, seed)]
    low, high = mean(values).interval(confidence=0.9, resamples=200, seed=seed)
    if np.ptp(by_hand) <= 1e-9 * abs(by_hand[0]):
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
    metrics: dict[str, Metric] = classification([*map(str, x)], [*map(str, y)])[0] | similarity(x, y + rng.random(1000))
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
    found = {
        **classification(labels, labels)[0],
        **{f"tag {name}": each for name, each in tagging(tags, tags)[0].items()},
    }
    expected = stats.binomtest(3 * rows, 3 * rows).proportion_ci(method="wilson").low
    for name, metric in found.items():
        low, high = metric.interval()
        assert (metric.value, high) == pytest.approx((1.0, 1.0))
        assert low == pytest.approx(expected if name != "mcc" else 2 * expected - 1)
    other = ["b", "c", "a"] * rows
    low, high = classification(labels, other)[0]["f1"].interval()
    assert (low, high) == pytest.approx((0.0, 1 - expected))
    assert np.isnan(language_model([2.0] * rows, [1] * rows)["perplexity"].interval()).all()


NUMBERS = st.one_of(st.integers(0, 3).map(float), st.floats(-1e3, 1e3).map(lambda number: round(number, 3)))
NUMBER_PAIRS = st.lists(st.tuples(NUMBERS, NUMBERS), min_size=2, max_size=40)


def _vary(*columns: np.ndarray) -> bool:
    return all(len(set(column)) > 1 for column in columns)


@given(NUMBER_PAIRS, st.sampled_from([0.0, 1e6]))
def test_correlations_are_scipys(pairs: list[tuple[float, float]], offset: float) -> None:
    x, y = np.array(pairs).T
    assume(_vary(x, y))
    found = similarity(x + offset, y)
    assert found["spearman"].value == pytest.approx(stats.spearmanr(x + offset, y).statistic, abs=1e-6)
    assert found["pearson"].value == pytest.approx(stats.pearsonr(x, y).statistic, abs=1e-6)


@given(NUMBER_PAIRS, st.integers(0, 9))
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


WORDS = st.lists(st.sampled_from(["a", "cat", "sat", "on", "the", "mat.", "Größe", "x\ny", "12"]), max_size=12)
TEXT_PAIRS = st.lists(st.tuples(WORDS.map(" ".join), WORDS.map(" ".join)), min_size=1, max_size=8)


def _columns(pairs: list[tuple[str, str]]) -> tuple[list[str], list[str]]:
    return [pair[0] for pair in pairs], [pair[1] for pair in pairs]


@given(TEXT_PAIRS)
@settings(max_examples=50)
def test_translations_are_scored_as_by_sacrebleu(pairs: list[tuple[str, str]]) -> None:
    references, predictions = _columns(pairs)
    metrics = translation(references, predictions)
    counts = np.arange(1, 1 + len(pairs)) % 3
    counts[0] = 1
    drawn = [
        [text for text, count in zip(column, counts, strict=True) for _ in range(count)]
        for column in (references, predictions)
    ]
    for (x, y), values in (
        ((references, predictions), {name: metric.value for name, metric in metrics.items()}),
        (drawn, {name: metric.of_counts(counts[None].astype(float))[0] for name, metric in metrics.items()}),
    ):
        assert values["bleu"] == pytest.approx(sacrebleu.corpus_bleu(y, [x], force=True).score)
        assert values["chrf"] == pytest.approx(sacrebleu.corpus_chrf(y, [x]).score)


@given(TEXT_PAIRS)
@settings(max_examples=50)
def test_summaries_are_scored_as_by_rouge_score(pairs: list[tuple[str, str]]) -> None:
    references, predictions = _columns(pairs)
    names = ["rouge1", "rouge2", "rougeL", "rougeLsum"]
    scores = [RougeScorer(names).score(*pair) for pair in pairs]
    found = {name: metric.value for name, metric in summaries(references, predictions).items()}
    assert found == pytest.approx({name: np.mean([score[name].fmeasure for score in scores]) for name in names})


def test_exact_match() -> None:
    texts = ["The cat.", "a dog", "12"], [" The cat.\n", "A dog!", "13"]
    assert exact_match(*texts).value == pytest.approx(1 / 3)


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for module, function in (("sacrebleu.metrics", translation), ("rouge_score.rouge_scorer", summaries)):
        monkeypatch.setitem(sys.modules, module, None)
        with pytest.raises(UserError, match=r"pip install 'anyformer\[eval\]'"):
            function(["a"], ["b"])


def test_they_are_those_of_all_rows_together() -> None:
    found = language_model([3.0, 1.0], [2, 6], [10, 30])
    assert found["perplexity"].value == pytest.approx(math.exp(4 / 8))
    assert found["bits_per_byte"].value == pytest.approx(4 / math.log(2) / 40)
    assert set(language_model([3.0], [2])) == {"perplexity"}


def test_extremes() -> None:
    assert math.isnan(language_model([0.0], [0])["perplexity"].value)
    assert language_model([1e9], [1])["perplexity"].value == pytest.approx(math.exp(700))
