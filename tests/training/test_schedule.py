from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anyformer.errors import UserError
from anyformer.training.schedule import FLOOR, SCHEDULES, StepBudget, TimeBudget, check_schedule, learning_rate_factor

names = st.sampled_from(sorted(SCHEDULES))
warmups = st.floats(0.001, 0.5)
decays = st.floats(0.01, 0.5)


def _rates(name: str, steps: int, warmup: float, decay: float = 0.2) -> list[float]:
    budget = StepBudget(steps)
    return [learning_rate_factor(name, budget.progress(step), warmup=warmup, decay=decay) for step in range(steps)]


@pytest.mark.parametrize("name", sorted(SCHEDULES))
def test_warmup_rises_in_a_line_to_the_peak(name: str):
    rates = _rates(name, 2000, 0.05)
    assert rates[:100] == pytest.approx([(step + 1) / 100 for step in range(100)])
    assert max(rates) == pytest.approx(1.0)


@given(names, warmups, decays, st.floats(0, 1))
def test_the_factor_is_a_share_without_jumps(name: str, warmup: float, decay: float, progress: float):
    factor = learning_rate_factor(name, progress, warmup=warmup, decay=decay)
    assert 0 <= factor <= 1 + 1e-12
    later = learning_rate_factor(name, min(1.0, progress + 1e-9), warmup=warmup, decay=decay)
    # The steepest place is the beginning of wsd's decay, where a root rises with infinite slope.
    assert abs(factor - later) < 1e-3


@given(names, warmups, decays)
def test_after_the_peak_it_never_rises(name: str, warmup: float, decay: float):
    places = [warmup + (1 - warmup) * share / 50 for share in range(51)]
    factors = [learning_rate_factor(name, min(place, 1.0), warmup=warmup, decay=decay) for place in places]
    assert factors[0] == pytest.approx(1.0)
    assert all(a >= b - 1e-12 for a, b in itertools.pairwise(factors))


def test_a_cosine_falls_to_a_tenth():
    rates = _rates("cosine", 1000, 0.1)
    assert all(a > b for a, b in itertools.pairwise(rates[99:]))
    assert rates[549] == pytest.approx((1 + FLOOR) / 2, abs=1e-3)
    assert rates[-1] == pytest.approx(FLOOR)


@given(warmups, st.floats(0, 1))
def test_a_line_falls_to_zero(warmup: float, share: float):
    progress = warmup + share * (1 - warmup)
    assert learning_rate_factor("linear", progress, warmup=warmup) == pytest.approx(1 - share, abs=1e-9)


@given(st.integers(1, 4000), st.integers(4001, 100_000), st.integers(1, 100_000))
def test_the_inverse_root_is_that_of_the_paper(warmup_steps: int, steps: int, step: int):
    def paper(step: int) -> float:
        return 512**-0.5 * min(step**-0.5, step * warmup_steps**-1.5)

    step = min(step, steps)
    expected = paper(step) / paper(warmup_steps)
    factor = learning_rate_factor("inverse_sqrt", StepBudget(steps).progress(step - 1), warmup=warmup_steps / steps)
    assert factor == pytest.approx(expected, rel=1e-9)


@given(warmups, st.floats(0.01, 0.5), st.floats(0, 1))
def test_warmup_stable_decay(warmup: float, decay: float, share: float):
    stable = warmup + share * (1 - decay - warmup)
    assert learning_rate_factor("wsd", min(stable, 1 - decay), warmup=warmup, decay=decay) == pytest.approx(
        1.0, abs=1e-6
    )
    falling = 1 - decay + share * decay
    expected = 1 - math.sqrt(share)
    assert learning_rate_factor("wsd", min(falling, 1.0), warmup=warmup, decay=decay) == pytest.approx(
        expected, abs=1e-6
    )


def test_wsd_without_decay_stays_at_its_peak():
    assert learning_rate_factor("wsd", 1.0, warmup=0.1, decay=0.0) == 1.0


@pytest.mark.parametrize("name", ["cosine", "linear", "wsd"])
def test_without_warmup_it_starts_at_the_peak(name: str):
    assert learning_rate_factor(name, 0.0, warmup=0.0) == 1.0


@pytest.mark.parametrize(
    ("name", "warmup", "decay", "sentence"),
    [
        ("cosin", 0.1, 0.2, "did you mean 'cosine'"),
        ("inverse_sqrt", 0.0, 0.2, "--warmup above 0"),
        ("linear", 1.0, 0.2, "share of the run"),
        ("wsd", 0.5, 0.6, "together"),
        ("wsd", 0.5, -0.1, "share of the run"),
    ],
)
def test_what_cannot_be_followed_is_declined(name: str, warmup: float, decay: float, sentence: str):
    with pytest.raises(UserError, match=sentence):
        check_schedule(name, warmup, decay)


def test_steps_end_after_their_number():
    budget = StepBudget(3)
    assert [budget.progress(step) <= 1 for step in range(4)] == [True, True, True, False]


class _Time:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def _run(clock: TimeBudget, time: _Time, took: Callable[[int], float], first: int = 0) -> list[float]:
    """What the progress was at each step."""
    found: list[float] = []
    while (progress := clock.progress(first + len(found))) <= 1:
        time.now += took(first + len(found))
        found.append(progress)
    return found


@pytest.mark.parametrize("seconds_a_step", [0.1, 0.7, 3.0])
@pytest.mark.parametrize("compiling", [0.0, 25.0, 50.0])
def test_the_clock_anneals_and_ends_on_time(seconds_a_step: float, compiling: float):
    time = _Time()
    clock = TimeBudget(60.0, now=time)
    found = _run(clock, time, lambda step: seconds_a_step + compiling * (step == 0))
    assert 60.0 - 2 * seconds_a_step <= time.now - 1000.0 <= 60.0 + 1e-6
    assert all(a < b for a, b in itertools.pairwise(found))
    rates = [learning_rate_factor("cosine", progress, warmup=0.05) for progress in found]
    assert rates[-1] == pytest.approx(FLOOR, abs=0.02)
    assert compiling or max(rates) > 0.98


def test_a_pause_does_not_end_the_run_early():
    time = _Time()
    clock = TimeBudget(100.0, now=time)
    found = _run(clock, time, lambda step: 1.0 + 12.0 * (step % 20 == 19))
    assert 98.0 <= time.now - 1000.0 <= 100.0 + 1e-6
    assert max(b - a for a, b in itertools.pairwise(found)) < 0.14


@given(st.floats(0.1, 5.0), st.lists(st.integers(1, 20), max_size=4))
def test_a_stopped_clock_goes_on_where_it_was(seconds_a_step: float, stops: list[int]):
    elapsed, step, took = 0.0, 0, 0.0
    for stop in stops:
        time = _Time()
        clock = TimeBudget(60.0, elapsed, now=time)
        for _ in range(stop):
            progress = clock.progress(step)
            if progress > 1:
                break
            assert progress * 60.0 >= elapsed - 1e-9
            time.now += seconds_a_step
            step, took = step + 1, took + seconds_a_step
        elapsed = took
    time = _Time()
    clock = TimeBudget(60.0, elapsed, now=time)
    took += seconds_a_step * len(_run(clock, time, lambda _: seconds_a_step, step))
    # The first step after each start is not foreseen, so one too many may be begun.
    assert 60.0 - 2 * seconds_a_step <= took <= 60.0 + seconds_a_step + 1e-6


def test_a_run_that_is_over_stays_over():
    assert TimeBudget(60.0, 61.0).progress(12) > 1


def test_the_clock_gives_one_step_at_least():
    time = _Time()
    clock = TimeBudget(1.0, now=time)
    assert clock.progress(0) <= 1
    time.now += 5.0
    assert clock.progress(1) > 1
