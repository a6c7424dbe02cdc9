"""What a run logs of its speed."""

import time

import pytest

from anyformer.analysis import TrainingFlops
from anyformer.runs.metrics import Meter


class Clock:
    """A clock that tests set."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(time, "monotonic", made)
    return made


@pytest.mark.parametrize("state", [None, {"elapsed": 50.0, "tokens": 1000}])
def test_only_training_counts(clock: Clock, state: dict[str, float] | None) -> None:
    before = 0.0 if state is None else state["elapsed"]
    meter = Meter(TrainingFlops(2, 0), state)
    clock.now += 7  # an evaluation
    meter.start()
    assert meter.elapsed == before
    meter.add(0.1, 30, 0)
    clock.now += 3
    meter.read([(1.5, 0.2)])
    line = meter.line(1)
    assert line["tokens_per_second"] == 10
    assert line["elapsed"] == before + 3
    clock.now += 20  # a checkpoint
    meter.resume()
    meter.add(0.1, 30, 0)
    clock.now += 2
    meter.read([(1.4, 0.2)])
    assert meter.line(2)["tokens_per_second"] == 15
    assert meter.elapsed == before + 25
