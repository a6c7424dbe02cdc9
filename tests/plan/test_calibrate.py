"""Time of a step by real steps: of the whole model, or by a line through two smaller ones."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anyformer.plan import calibrate
from anyformer.plan.calibrate import Measured, StepTime
from anyformer.plan.devices import find_device
from anyformer.plan.step import StepCount, count_step
from anyformer.plan.workload import Workload, make_workload
from anyformer.spec import SpecifiedModel, read_config
from anyformer.training.precision import Precision


def workload(name: str, layers: int, **options: Any) -> Workload:
    config = read_config(name).config
    stacks = {stack: layers for stack in ("encoder_layers", "decoder_layers") if getattr(config, stack)}
    sources = {"source_vocab_size": 300} if config.source_vocab_size is not None else {}
    config = config.replace(**{"vocab_size": 300, **stacks, **sources})
    values = {"context": 24, "batch_size": 4, "dtype": "float32", **options}
    return replace(make_workload(SpecifiedModel(name, config), values, find_device("cpu")), in_heap=False)


def count(asked: Workload) -> StepCount:
    """Operations of a vocabulary and of layers, as many as there are."""
    return StepCount({}, {}, 0, 1000 + 100 * max(asked.model.encoder_layers, asked.model.decoder_layers), (1, 1))


def steps_in_time(number: float, asked: StepCount, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the machine take as many steps of the workload as calibrating may."""
    peak = asked.flops * number / calibrate.SECONDS / calibrate.CPU_SHARES[1]

    def known(precision: Precision) -> float:
        return peak

    monkeypatch.setattr(calibrate, "peak_flops_per_second", known)


@pytest.mark.parametrize("name", ["llama-nano", "bert-tiny", "transformer-tiny"])
@given(layers=st.integers(4, 40), base=st.floats(1, 9), slope=st.floats(1, 9), spread=st.floats(0, 0.5))
def test_the_time_of_a_large_model_is_on_the_line_of_two_smaller_ones(
    name: str, layers: int, base: float, slope: float, spread: float
) -> None:
    def measured(part: Workload, **limits: float) -> Measured:
        middle = base + slope * max(part.model.encoder_layers, part.model.decoder_layers)
        return Measured((middle, middle * (1 - spread), middle * (1 + spread)), None)

    asked = workload(name, layers)
    with pytest.MonkeyPatch.context() as patch:
        steps_in_time(3.9, count(asked), patch)
        patch.setattr(calibrate, "measure", measured)
        patch.setattr(calibrate, "count_step", count)
        time = calibrate.calibrate(asked, count(asked))

    assert time.seconds == pytest.approx(base + slope * layers)
    assert time.low == pytest.approx(time.seconds * (1 - spread))
    assert time.high == pytest.approx(time.seconds * (1 + spread))
    assert "3 and 3 real steps of this model with 1 and 3 layers" in time.reason


def test_a_model_whose_steps_end_in_time_is_measured_as_a_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    asked, took = workload("llama-nano", 4, engine="ddp", processes=2), list[Workload]()

    def measured(part: Workload, **limits: float) -> Measured:
        took.append(part)
        return Measured((2.0, 1.0, 3.0), None)

    steps_in_time(4.1, count(asked), monkeypatch)
    monkeypatch.setattr(calibrate, "measure", measured)
    time = calibrate.calibrate(asked, count(asked))

    assert (time.low, time.seconds, time.high) == (1.0, 2.0, 3.0)
    assert "3 real steps of this model, just now" in time.reason
    (part,) = took
    assert part.model == asked.model
    assert (part.config.engine, part.config.processes) == (None, 1)
    assert part.config.batch_size == asked.config.batch_size


@pytest.mark.parametrize(("layers", "steps"), [(3, 3.9), (2, 0.1), (12, 0.1)])
def test_steps_that_take_too_long_are_not_begun(layers: int, steps: float, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = workload("llama-nano", layers)
    steps_in_time(steps, count(asked), monkeypatch)
    monkeypatch.setattr(calibrate, "count_step", count)
    monkeypatch.delattr(calibrate, "measure")
    time = calibrate.calibrate(asked, count(asked))

    assert time.seconds == pytest.approx(calibrate.SECONDS / steps)
    assert "a share of it" in time.reason


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama-nano", "bert-mini", "t5-nano"])
def test_a_line_through_two_models_meets_the_whole(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = workload(name, 8, context=128)
    found = count_step(asked)
    times = list[StepTime]()
    for steps in (1000, 3.9):
        steps_in_time(steps, found, monkeypatch)
        times.append(calibrate.calibrate(asked, found))

    assert ["a line" in time.reason for time in times] == [False, True]
    assert times[1].seconds == pytest.approx(times[0].seconds, rel=0.2)
