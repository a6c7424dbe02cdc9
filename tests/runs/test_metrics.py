"""What a run logs of its speed, and of its validation loss."""

from __future__ import annotations

import math
import time
from itertools import islice

import numpy as np
import pytest
import torch

import anyformer as af
from anyformer.analysis import TrainingFlops
from anyformer.data.batches import validation_batches
from anyformer.data.objectives import Masked
from anyformer.runs.metrics import Meter, evaluate
from tests.training.conftest import single


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


VOCAB, CONTEXT = 30, 12


def _model(name: str = "gpt2-nano", **changes: object) -> af.Transformer:
    torch.manual_seed(1)
    return af.build(
        af.preset(name, vocab_size=VOCAB, max_length=CONTEXT, d_model=16, attention={"heads": 2}, **changes)
    )


@pytest.mark.parametrize("tokens", [2, 5, 13, 100, 12 * 4 * 3 + 1])
def test_equals_every_token_predicted_one_by_one(tokens: int):
    """Each token once, from those before it in its window; windows stand side by side, the last reaches back."""
    model = _model(dropout=0.5, init={"std": 0.3})
    ids = np.random.default_rng(0).integers(0, VOCAB, tokens).astype(np.uint16)
    found = evaluate(single(model).evaluate, validation_batches(ids, CONTEXT, 4))
    model.eval()
    nats = 0.0
    for place in range(1, tokens):
        window = (place - 1) // CONTEXT * CONTEXT
        window = max(0, min(window, tokens - CONTEXT - 1))
        read = torch.from_numpy(ids[window:place].astype(np.int64))[None]
        nats -= model(read).logits[0, -1].log_softmax(-1)[int(ids[place])].item()
    assert found.predicted == tokens - 1
    assert found.nats == pytest.approx(nats, rel=1e-5)
    assert found.loss == pytest.approx(nats / (tokens - 1), rel=1e-5)


def test_a_uniform_model_needs_log2_of_the_vocabulary_for_each_token():
    model = _model()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    ids, size = np.arange(1001, dtype=np.uint16) % VOCAB, 4321
    found = evaluate(single(model).evaluate, validation_batches(ids, CONTEXT, 8))
    assert found.loss == pytest.approx(math.log(VOCAB), rel=1e-6)
    assert found.bits_per_byte(len(ids), size) == pytest.approx(math.log2(VOCAB) * 1000 / size, rel=1e-6)
    part = evaluate(single(model).evaluate, islice(validation_batches(ids, CONTEXT, 8), 0, None, 3))
    assert part.predicted < found.predicted
    assert part.bits_per_byte(len(ids), size) == pytest.approx(math.log2(VOCAB) * 1000 / size, rel=1e-6)


def test_masked_counts_what_is_masked():
    model = _model("bert-tiny")
    objective = Masked(4, np.arange(5, VOCAB), np.arange(5))
    ids = np.random.default_rng(0).integers(5, VOCAB, 200).astype(np.uint16)
    batches = list(validation_batches(ids, CONTEXT, 4, objective))
    found = evaluate(single(model).evaluate, batches)
    assert found.predicted == sum(batch.predicted for batch in batches)
    assert 0.1 < found.predicted / 200 < 0.2
    assert found.loss == evaluate(single(model).evaluate, validation_batches(ids, CONTEXT, 4, objective)).loss


@pytest.mark.parametrize("training", [True, False])
def test_leaves_the_model_as_it_was(training: bool):
    model = _model(dropout=0.5).train(training)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    evaluate(single(model).evaluate, validation_batches(np.arange(50, dtype=np.uint16) % VOCAB, CONTEXT, 4))
    assert model.training is training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_stops_when_it_is_asked_to():
    ids = np.arange(500, dtype=np.uint16) % VOCAB
    found = evaluate(single(_model()).evaluate, validation_batches(ids, CONTEXT, 4), stop=lambda: True)
    assert found.predicted == 4 * CONTEXT
