from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import anyformer as af
from anyformer.data.objectives import IGNORED, Batch, Causal, Masked
from anyformer.training.loop import DivergedError, model_inputs, train_steps
from anyformer.training.optimiser import adamw
from anyformer.training.precision import Precision
from anyformer.training.schedule import Steps, learning_rate_factor

FLOAT = Precision(torch.device("cpu"), torch.float32, "as asked")
BRAIN = Precision(torch.device("cpu"), torch.bfloat16, "as asked")
VOCAB = 40


def _batch(name: str) -> Batch:
    rng = np.random.default_rng(0)
    windows = rng.integers(5, VOCAB, (4, 17))
    if name.startswith("bert"):
        masked = Masked(4, np.arange(5, VOCAB), np.arange(5))
        return masked(windows, np.ones(windows.shape, dtype=bool), None, rng)
    return Causal()(windows, np.ones(windows.shape, dtype=bool), None, rng)


def _model(name: str) -> af.Transformer:
    torch.manual_seed(0)
    layers = "encoder_layers" if name.startswith("bert") else "decoder_layers"
    return af.build(
        af.preset(
            name,
            vocab_size=VOCAB,
            d_model=32,
            dropout=0.0,
            attention={"heads": 2, "kv_heads": None, "head_dim": None, "dropout": 0.0},
            feed_forward={"width": 64},
            embedding={"dropout": 0.0},
            **{layers: 2},
        )
    )


@pytest.mark.parametrize("precision", [FLOAT, BRAIN], ids=lambda precision: precision.name)
@pytest.mark.parametrize("name", ["gpt2-nano", "llama-nano", "bert-tiny"])
def test_one_batch_is_learnt_by_heart(name: str, precision: Precision):
    model, batch = _model(name), _batch(name)
    optimiser = adamw(model, 1e-2)
    steps = train_steps(
        model, lambda step: batch, optimiser, Steps(150), precision, learning_rate=1e-2, warmup=0.05, clip=1.0
    )
    reports = list(steps)
    assert reports[0].loss > 3.0
    assert reports[-1].loss < 0.05
    assert [report.step for report in reports] == list(range(1, 151))
    assert reports[-1].progress == 1.0
    assert reports[-1].learning_rate == pytest.approx(1e-3)
    assert all(report.tokens == batch.tokens.size for report in reports)


def test_the_loop_is_the_plain_one_written_out():
    model, twin, batch = _model("gpt2-nano"), _model("gpt2-nano"), _batch("gpt2-nano")
    reports = list(
        train_steps(
            model, lambda step: batch, adamw(model, 1.0), Steps(8), FLOAT, learning_rate=3e-3, warmup=0.25, clip=0.5
        )
    )
    optimiser = adamw(twin, 1.0)
    for step, report in enumerate(reports):
        for group in optimiser.param_groups:
            group["lr"] = 3e-3 * learning_rate_factor((step + 1) / 8, 0.25)
        optimiser.zero_grad()
        logits = twin(torch.from_numpy(batch.tokens)).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), torch.from_numpy(batch.targets).flatten())
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(twin.parameters(), 0.5)
        optimiser.step()
        assert report.loss == pytest.approx(loss.item(), rel=1e-6)
        assert report.gradient_norm == pytest.approx(norm.item(), rel=1e-5)
    for ours, theirs in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_masked_loss_is_the_mean_over_predicted_tokens():
    model, batch = _model("bert-tiny"), _batch("bert-tiny")
    report = next(
        train_steps(model, lambda step: batch, adamw(model, 1e-3), Steps(1), FLOAT, learning_rate=0, warmup=0, clip=1)
    )
    log = model(torch.from_numpy(batch.tokens)).logits.log_softmax(-1)
    rows, columns = np.nonzero(batch.targets != IGNORED)
    picked = [-log[r, c, batch.targets[r, c]].item() for r, c in zip(rows, columns, strict=True)]
    assert 0 < len(picked) < batch.targets.size
    assert report.loss == pytest.approx(sum(picked) / len(picked), rel=1e-5)


def test_a_batch_becomes_the_arguments_of_the_model():
    batch = Batch(np.zeros((1, 2), dtype=np.int64), np.zeros((1, 2), dtype=np.int64), np.ones((1, 2), dtype=bool))
    assert set(model_inputs(batch, torch.device("cpu"))) == {"tokens", "targets", "mask"}


def test_divergence_is_reported_before_the_step_is_taken():
    model, batch = _model("gpt2-nano"), _batch("gpt2-nano")
    steps = train_steps(
        model, lambda step: batch, adamw(model, 1.0), Steps(50), FLOAT, learning_rate=1e30, warmup=0.0, clip=1.0
    )
    first = next(steps)
    assert math.isfinite(first.loss)
    kept = [parameter.detach().clone() for parameter in model.parameters()]
    with pytest.raises(DivergedError, match=r"after step 1 the (loss|gradient) is (nan|inf).*--learning-rate"):
        next(steps)
    for parameter, before in zip(model.parameters(), kept, strict=True):
        torch.testing.assert_close(parameter.detach(), before, rtol=0, atol=0, equal_nan=True)
