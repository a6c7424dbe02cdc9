import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from anyformer.compare.result import BETTER, NO_VERDICT, UNDECIDED, Panel
from anyformer.compare.verdicts import Pieces, compare_members, difference, estimate, holm

_PANEL = Panel(name="next_byte", title="Next byte", measure="bits per byte", lower_is_better=True)


def _pieces(seed: int, pieces: int, *, mean: float = 2.0, seeds: int = 1, spread: float = 0.0) -> Pieces:
    rng = np.random.default_rng(seed)
    weights = rng.integers(200, 400, pieces).astype(float)
    hard = rng.normal(0, 0.3, pieces)
    own = rng.normal(mean, spread, (seeds, 1)) if spread else np.full((seeds, 1), mean)
    return Pieces((own + hard + rng.normal(0, 0.05, (seeds, pieces))) * weights, weights)


@given(st.lists(st.floats(0, 1), max_size=8))
def test_holm_agrees_with_its_definition(p: list[float]) -> None:
    corrected = holm(p)
    order = sorted(range(len(p)), key=lambda index: p[index])
    for rank, index in enumerate(order):
        assert corrected[index] == min(1.0, max((len(p) - k) * p[order[k]] for k in range(rank + 1)))


@settings(max_examples=8)
@given(seed=st.integers(0, 99), pieces=st.integers(40, 90))
def test_the_bootstrap_agrees_with_scipy(seed: int, pieces: int) -> None:
    made = _pieces(seed, pieces)
    expected = stats.bootstrap(
        (made.totals[0], made.weights),
        lambda totals, weights, axis: totals.sum(axis=axis) / weights.sum(axis=axis),
        paired=True,
        method="percentile",
        rng=np.random.default_rng(seed),
    )
    got = estimate(made).interval
    width = expected.confidence_interval.high - expected.confidence_interval.low
    assert np.abs(np.array(got) - expected.confidence_interval).max() < 0.1 * width


@settings(max_examples=8)
@given(seed=st.integers(0, 99), seeds=st.integers(2, 6))
def test_the_noise_of_seeds_is_that_of_students_t(seed: int, seeds: int) -> None:
    rng = np.random.default_rng(seed)
    values = rng.normal(2, 0.1, (seeds, 1))
    expected = stats.t.interval(0.95, seeds - 1, values.mean(), stats.sem(values[:, 0]))
    got = estimate(Pieces(values.repeat(50, axis=1), np.ones(50))).interval
    assert np.abs(np.array(got) - expected).max() < 0.15 * (expected[1] - expected[0])


def test_a_paired_comparison_sees_what_an_unpaired_one_does_not() -> None:
    a = _pieces(1, 200)
    b = Pieces(a.totals * 1.01, a.weights)
    assert difference(a, b).p < 0.01
    assert estimate(a).interval[1] > estimate(b).interval[0]


def test_only_the_same_pieces_are_compared() -> None:
    with pytest.raises(ValueError, match="same pieces"):
        difference(_pieces(0, 40), _pieces(0, 41))


def test_equal_models_are_not_told_apart_and_a_worse_one_is_found() -> None:
    good = _pieces(0, 100, seeds=3)
    worse = Pieces(good.totals + 0.2 * good.weights, good.weights)
    panel, verdicts = compare_members(_PANEL, {"a": good, "b": good, "c": good, "worse": worse})
    found = {(each.a, each.b): each.verdict for each in verdicts}
    assert found == {
        **dict.fromkeys([("a", "b"), ("a", "c"), ("b", "c")], UNDECIDED),
        **dict.fromkeys([("a", "worse"), ("b", "worse"), ("c", "worse")], BETTER),
    }
    assert panel.scores[-1].model == "worse"
    assert panel.pieces == 100
    assert all(each.difference <= 0 for each in verdicts)


@pytest.mark.slow
def test_of_equal_models_about_one_in_twenty_pairs_would_pass_without_correction() -> None:
    trials, rng = 200, np.random.default_rng(0)
    found = 0
    for _ in range(trials):
        weights = np.full(60, 300.0)
        a, b = (Pieces((2 + rng.normal(0, 0.2, (3, 1)) + rng.normal(0, 0.3, (3, 60))) * 300, weights) for _ in range(2))
        found += difference(a, b).p < 0.05
    assert found / trials < 0.08


def test_higher_is_better_for_tasks() -> None:
    panel = Panel(name="cloze", title="Cloze", measure="accuracy", lower_is_better=False)
    right, wrong = [[1.0] * 90 + [0.0] * 10] * 2, [[1.0] * 30 + [0.0] * 70] * 2
    panel, (verdict,) = compare_members(panel, {"weak": Pieces.of_items(wrong), "strong": Pieces.of_items(right)})
    assert (verdict.a, verdict.b, verdict.verdict) == ("strong", "weak", BETTER)
    assert verdict.difference == pytest.approx(0.6)
    assert [each.model for each in panel.scores] == ["strong", "weak"]


@pytest.mark.parametrize(
    ("seeds", "items", "reason"),
    [
        (1, 100, "there is one seed, and another could turn it round"),
        (3, 29, "it takes 30 items, and there are 29"),
        (2, 30, None),
    ],
)
def test_one_seed_and_few_items_name_no_winner(seeds: int, items: int, reason: str | None) -> None:
    task = Panel(name="cloze", title="Cloze", measure="accuracy", lower_is_better=False, chance=0.25)
    found = {name: Pieces.of_items([[right] * items] * seeds) for name, right in (("weak", 0.0), ("strong", 1.0))}
    panel, (verdict,) = compare_members(task, found)
    assert panel.no_verdict == reason
    assert verdict.verdict == (BETTER if reason is None else NO_VERDICT)
    assert (verdict.difference, verdict.pair[:6]) == (1.0, "strong")
    # All are right, and so are all resamples of them.
    wilson = stats.binomtest(items, items).proportion_ci(method="wilson")
    assert panel.scores[0].interval == pytest.approx((wilson.low, 1.0))
    assert panel.scores[1].interval == pytest.approx((0.0, 1 - wilson.low))
    a = _pieces(0, items, seeds=seeds)
    text, _ = compare_members(_PANEL, {"a": a, "b": Pieces(a.totals + a.weights, a.weights)})
    assert text.no_verdict == (reason and reason.replace("items", "held-out pieces"))
