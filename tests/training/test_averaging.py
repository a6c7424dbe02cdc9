from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load, save
from torch import Tensor

from anyformer.errors import UserError
from anyformer.training.averaging import Average, LatestAverage, MovingAverage, make_average

SPECS = ["ema:0.9", "ema:0", "last:1", "last:3"]

seeds = st.integers(0, 2**31)


def _walk(seed: int, steps: int) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return [
        {"a.weight": torch.randn(3, 4, generator=generator), "a.bias": torch.randn(3, generator=generator)}
        for _ in range(steps)
    ]


def _average(spec: str) -> Average:
    average = make_average(spec)
    assert average is not None
    return average


def _feed(average: Average, walk: list[dict[str, Tensor]]) -> None:
    for weights in walk:
        average.update(weights)
        average.snapshot(weights)


@given(seeds, st.integers(1, 30), st.floats(0, 0.999))
def test_a_moving_average_is_its_recurrence(seed: int, steps: int, decay: float):
    walk, average = _walk(seed, steps), MovingAverage(decay)
    _feed(average, walk)
    found = average.weights()
    assert found is not None
    for name, first in walk[0].items():
        mean, kept = first.double(), 1.0
        for updates, weights in enumerate(walk[1:], 1):
            kept *= min(decay, (1 + updates) / (10 + updates))
            if kept <= 0.95:
                mean, kept = kept * mean + (1 - kept) * weights[name].double(), 1.0
        torch.testing.assert_close(found[name].double(), mean, rtol=1e-5, atol=1e-6)


@given(st.sampled_from([1, 5, 30, 400, 2000]), st.sampled_from([0.0, 0.9, 0.99, 0.999]))
def test_steps_that_are_one_update_make_little_difference(steps: int, decay: float):
    """On a path that is straight the average lags as far behind as one of every step, but for a twentieth."""
    average, lag = MovingAverage(decay), 0.0
    for step in range(steps):
        average.update({"weight": torch.tensor([float(step)])})
        share = min(decay, (1 + step) / (10 + step)) if step else 0.0
        lag = share * (lag + 1 if step else 0.0)
    found = average.weights()
    assert found is not None
    ours = steps - 1 - float(found["weight"])
    assert ours == pytest.approx(lag, rel=0.06, abs=0.5)


@given(seeds, st.integers(1, 9), st.integers(1, 6))
def test_the_latest_average_is_the_mean_of_the_latest_snapshots(seed: int, steps: int, number: int):
    walk, average = _walk(seed, steps), LatestAverage(number)
    _feed(average, walk)
    found = average.weights()
    assert found is not None
    for name in walk[0]:
        mean = torch.stack([weights[name].double() for weights in walk[-number:]]).mean(0)
        torch.testing.assert_close(found[name].double(), mean, rtol=1e-5, atol=1e-6)


def test_each_counts_what_it_is_for():
    (weights,) = _walk(0, 1)
    moving, latest = _average("ema:0.9"), _average("last:2")
    moving.snapshot(weights)
    latest.update(weights)
    assert moving.weights() is None
    assert latest.weights() is None


def test_constant_weights_average_to_themselves():
    (weights,) = _walk(0, 1)
    for spec in SPECS:
        average = _average(spec)
        _feed(average, [weights] * 4)
        found = average.weights()
        assert found is not None
        assert all(found[name].equal(weight) or spec == "last:3" for name, weight in weights.items())
        torch.testing.assert_close(found, weights)


def _interrupted(average: Average, live: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    with average.applied(live):
        assert all(live[name].equal(expected[name]) for name in live)
        raise KeyboardInterrupt


@pytest.mark.parametrize("spec", SPECS)
def test_live_weights_come_back_bit_for_bit(spec: str):
    average, walk = _average(spec), _walk(1, 5)
    live = walk[-1]
    live["a.bias"][0] = float("nan")
    _feed(average, walk[:-1])
    before = {name: weight.clone() for name, weight in live.items()}
    mean = average.weights()
    assert mean is not None
    expected = {name: value.clone() for name, value in mean.items()}
    tensors = dict(live)
    with pytest.raises(KeyboardInterrupt):
        _interrupted(average, live, expected)
    assert all(live[name] is tensors[name] for name in live)
    for name, weight in live.items():
        torch.testing.assert_close(weight, before[name], rtol=0, atol=0, equal_nan=True)
    after = average.weights()
    assert after is not None
    assert all(after[name].equal(expected[name]) for name in live)


@pytest.mark.parametrize("spec", SPECS)
def test_before_there_is_an_average_the_weights_are_their_own(spec: str):
    (live,) = _walk(0, 1)
    before = {name: weight.clone() for name, weight in live.items()}
    with _average(spec).applied(live):
        assert all(live[name].equal(before[name]) for name in live)


@given(st.sampled_from(SPECS), seeds, st.integers(0, 6), st.integers(0, 6))
def test_stopping_makes_no_difference(spec: str, seed: int, before: int, after: int):
    walk = _walk(seed, before + after)
    through, first, second = (_average(spec) for _ in range(3))
    _feed(through, walk)
    _feed(first, walk[:before])
    second.load_state(load(save(first.state())))
    _feed(second, walk[before:])
    found, expected = second.weights(), through.weights()
    if expected is None or found is None:
        assert found is expected
    else:
        assert all(found[name].equal(expected[name]) for name in expected)
    assert set(second.state()) == set(through.state())


def test_what_is_loaded_is_a_copy():
    walk = _walk(0, 3)
    for spec in SPECS:
        first, second = _average(spec), _average(spec)
        _feed(first, walk[:2])
        state = first.state()
        kept = {key: value.clone() for key, value in state.items()}
        second.load_state(state)
        _feed(second, walk[2:])
        assert all(state[key].equal(kept[key]) for key in state)


def test_averages_are_kept_in_float32():
    for spec in SPECS:
        average = _average(spec)
        _feed(average, [{"a": torch.ones(2, dtype=torch.bfloat16)}] * 3)
        found = average.weights()
        assert found is not None
        assert found["a"].dtype == torch.float32


@pytest.mark.parametrize(("spec", "other"), [("ema:0.9", "last:3"), ("last:3", "ema:0.9"), ("last:3", "last:2")])
def test_a_state_of_another_average_is_declined(spec: str, other: str):
    saved, average = _average(spec), _average(other)
    _feed(saved, _walk(0, 3))
    with pytest.raises(UserError, match="--average"):
        average.load_state(saved.state())


@pytest.mark.parametrize("spec", ["ema:0.9", "last:3"])
def test_an_average_of_another_model_is_declined(spec: str):
    average = _average(spec)
    _feed(average, _walk(0, 1))
    with pytest.raises(UserError, match="another model"):
        _feed(average, [{"a.weight": torch.zeros(4, 3), "a.bias": torch.zeros(3)}])


def test_none_is_none():
    assert make_average(None) is None


@pytest.mark.parametrize(
    "text", ["", "ema", "ema:", "ema:1", "ema:-0.1", "ema:nan", "ema:x", "last:0", "last:2.5", "last:", "mean:3", "5"]
)
def test_nonsense_is_declined_in_a_sentence(text: str):
    with pytest.raises(UserError, match=r"ema:DECAY .* last:NUMBER"):
        make_average(text)
