from __future__ import annotations

import itertools

import pytest

from anyformer.training.schedule import FLOOR, Clock, Steps, learning_rate_factor


def test_warmup_rises_in_a_line_to_the_peak():
    horizon = Steps(2000)
    rates = [learning_rate_factor(horizon.progress(step), 0.05) for step in range(2000)]
    assert rates[:100] == pytest.approx([(step + 1) / 100 for step in range(100)])
    assert max(rates) == pytest.approx(1.0)


def test_it_falls_along_a_cosine_to_a_tenth():
    horizon = Steps(1000)
    rates = [learning_rate_factor(horizon.progress(step), 0.1) for step in range(1000)]
    assert all(a > b for a, b in itertools.pairwise(rates[99:]))
    assert rates[549] == pytest.approx((1 + FLOOR) / 2, abs=1e-3)
    assert rates[-1] == pytest.approx(FLOOR)


def test_without_warmup_it_starts_at_the_peak():
    assert learning_rate_factor(0.0, 0.0) == 1.0


def test_steps_end_after_their_number():
    horizon = Steps(3)
    assert [horizon.progress(step) <= 1 for step in range(4)] == [True, True, True, False]


@pytest.mark.parametrize("seconds_a_step", [0.1, 0.7, 3.0])
def test_the_clock_anneals_and_ends_on_time(seconds_a_step: float):
    now = 1000.0
    clock = Clock(60.0, now=lambda: now)
    rates: list[float] = []
    step = 0
    while (progress := clock.progress(step)) <= 1:
        rates.append(learning_rate_factor(progress, 0.05))
        now += seconds_a_step
        step += 1
    assert 60.0 - 2 * seconds_a_step <= now - 1000.0 <= 60.0 + 1e-6
    assert rates[-1] == pytest.approx(FLOOR, abs=0.01)
    assert max(rates) > 0.99


def test_the_clock_gives_one_step_at_least():
    now = 0.0
    clock = Clock(1.0, now=lambda: now)
    assert clock.progress(0) <= 1
    now = 5.0
    assert clock.progress(1) > 1
