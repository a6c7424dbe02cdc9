from __future__ import annotations

import math
from collections.abc import Callable, Generator
from typing import Any

import numpy as np
import pytest
import torch
from tests.training.conftest import FLOAT, single

import anyformer as af
from anyformer.adapters import LoraConfig, add_adapter
from anyformer.blocks.quantized import QuantizedMatrix
from anyformer.data.batch import IGNORED, Batch
from anyformer.data.objectives import Causal, Masked
from anyformer.quantization import quantize
from anyformer.training.optimizer import make_optimizer
from anyformer.training.precision import Precision
from anyformer.training.schedule import learning_rate_factor
from anyformer.training.strategies.base import Strategy, model_inputs

BRAIN = Precision(torch.device("cpu"), torch.bfloat16, "as asked")
HALF = Precision(torch.device("cpu"), torch.float16, "as asked")
VOCAB = 40


def _cosine(peak: float, warmup: float = 0.05) -> Callable[[float], float]:
    return lambda progress: peak * learning_rate_factor("cosine", progress, warmup=warmup)


def _steps(strategy: Strategy, batch: Batch, count: int, rate: Callable[[float], float]) -> list[list[float]]:
    """Loss and gradient norm of each step."""
    return [strategy.step(number, batch, rate((number + 1) / count)).tolist() for number in range(count)]


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


def _same_weights(one: af.Transformer, other: af.Transformer) -> None:
    """Within rounding; a bias of keys adds the same to all scores of a query, so its gradient is noise."""
    for (name, ours), theirs in zip(one.named_parameters(), other.parameters(), strict=True):
        if not name.endswith("key.bias"):
            torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("precision", [FLOAT, BRAIN, HALF], ids=lambda precision: precision.name)
@pytest.mark.parametrize("name", ["gpt2-nano", "llama-nano", "bert-tiny"])
def test_one_batch_is_learnt_by_heart(name: str, precision: Precision):
    model, batch = _model(name), _batch(name)
    figures = _steps(single(model, precision), batch, 75, _cosine(2e-2))
    assert figures[0][0] > 3.0
    assert figures[-1][0] < 0.05


def test_steps_are_those_of_the_plain_loop_written_out():
    model, twin, batch = _model("gpt2-nano"), _model("gpt2-nano"), _batch("gpt2-nano")
    engine = single(model, grad_clip=0.5, label_smoothing=0.1)
    figures = _steps(engine, batch, 8, _cosine(3e-3, 0.25))
    optimizer = make_optimizer("adamw", twin, 1.0)
    for step, (found, length) in enumerate(figures):
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * learning_rate_factor("cosine", (step + 1) / 8, warmup=0.25)
        optimizer.zero_grad()
        logits = twin(torch.from_numpy(batch.tokens)).logits
        targets = torch.from_numpy(batch.targets).flatten()
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets, label_smoothing=0.1)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(twin.parameters(), 0.5)
        optimizer.step()
        assert found == pytest.approx(loss.item(), rel=1e-6)
        assert length == pytest.approx(norm.item(), rel=1e-5)
    _same_weights(model, twin)


@pytest.fixture
def _four_threads() -> Generator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("_four_threads")
@pytest.mark.parametrize("precision", [FLOAT, BRAIN], ids=lambda precision: precision.name)
@pytest.mark.parametrize("name", ["gpt2-nano", "llama-nano", "bert-tiny"])
def test_threads_that_compute_parts_of_a_batch_learn_the_same(name: str, precision: Precision) -> None:
    together, apart, batch = single(_model(name), precision), single(_model(name), precision), _batch(name)
    tolerance = 1e-5 if precision is FLOAT else 2e-2
    for number, count in enumerate((4, 1, 2, 4, 1)):
        assert apart.use_threads(count) == 4
        assert torch.get_num_threads() == count
        found = apart.step(number, batch, 1e-3)
        assert torch.get_num_threads() == count
        torch.testing.assert_close(found, together.step(number, batch, 1e-3), rtol=tolerance, atol=1e-6)
    if precision is FLOAT:
        _same_weights(together.model, apart.model)
        torch.testing.assert_close(apart.evaluate(batch), together.evaluate(batch))
    together.close()
    apart.close()


@pytest.mark.usefixtures("_four_threads")
@pytest.mark.parametrize(
    ("changes", "settings"),
    [
        ({"dropout": 0.1}, {}),
        ({"attention": {"dropout": 0.1}}, {}),
        ({"feed_forward": {"experts": {"count": 4, "used": 2, "balance": 0.01}}}, {}),
        ({}, {"compile": True}),
    ],
    ids=["dropout", "attention's dropout", "balanced experts", "compiled"],
)
def test_a_batch_stays_whole_where_its_parts_are_not_the_batch(
    changes: dict[str, Any], settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("anyformer.blocks.stack.Stack.compile", lambda stack: None)
    model = af.build(af.preset("llama-nano", vocab_size=VOCAB, decoder_layers=1, **changes))
    strategy = single(model, **settings)
    assert [strategy.use_threads(count) for count in (4, 2, 1)] == [4, 2, 1]
    strategy.model.eval()  # as while it is evaluated
    assert strategy.use_threads(1) == 1


def test_masked_loss_is_the_mean_over_predicted_tokens():
    model, batch = _model("bert-tiny"), _batch("bert-tiny")
    loss, _ = single(model).step(0, batch, 0.0).tolist()
    log = model(torch.from_numpy(batch.tokens)).logits.log_softmax(-1)
    rows, columns = np.nonzero(batch.targets != IGNORED)
    picked = [-log[r, c, batch.targets[r, c]].item() for r, c in zip(rows, columns, strict=True)]
    assert 0 < len(picked) < batch.targets.size
    assert loss == pytest.approx(sum(picked) / len(picked), rel=1e-5)


def test_a_batch_becomes_the_arguments_of_the_model():
    batch = Batch(np.zeros((1, 2), dtype=np.int64), np.zeros((1, 2), dtype=np.int64), np.ones((1, 2), dtype=bool))
    assert set(model_inputs(batch, torch.device("cpu"))) == {"tokens", "targets", "mask"}


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("waits", [True, False])
def test_a_step_that_is_not_finite_is_not_taken(optimizer: str, waits: bool):
    """Nor is it where the host doesn't wait for the figures, as with accelerators."""
    model, batch = _model("gpt2-nano"), _batch("gpt2-nano")
    strategy = single(model, optimizer=optimizer)
    strategy._waits = waits
    figures, before = strategy.step(0, batch, 1e-3), strategy.state()
    while figures.isfinite().all():
        before = {name: tensor.clone() for name, tensor in strategy.state().items()}
        figures = strategy.step(1, batch, 1e30)
    for name, tensor in strategy.state().items():
        torch.testing.assert_close(tensor, before[name], rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_steps_are_the_same_whether_or_not_the_host_waits(optimizer: str):
    batch = _batch("gpt2-nano")
    one, other = (single(_model("gpt2-nano"), optimizer=optimizer, average="ema:0.9") for _ in range(2))
    other._waits = False
    for number in range(5):
        assert one.step(number, batch, 1e-3).equal(other.step(number, batch, 1e-3))
    found = other.state()
    assert all(tensor.equal(found[name]) for name, tensor in one.state().items())


@pytest.mark.parametrize("name", ["gpt2-nano", "bert-tiny"])
@pytest.mark.parametrize(
    "changes", [{"grad_accumulation": 2}, {"grad_accumulation": 3}, {"gradient_checkpointing": True}]
)
def test_what_saves_memory_changes_nothing(name: str, changes: dict[str, Any]):
    """Parts have unequal numbers of targets, and rows (4 in 3 parts)."""
    batch = _batch(name)
    plain, thrifty = single(_model(name)), single(_model(name), **changes)
    for step in range(4):
        expected, found = plain.step(step, batch, 3e-3), thrifty.step(step, batch, 3e-3)
        assert found[0].item() == pytest.approx(expected[0].item(), rel=1e-5)
        assert found[1].item() == pytest.approx(expected[1].item(), rel=1e-4)
    _same_weights(thrifty.model, plain.model)


def test_dropout_is_a_function_of_seed_and_step():
    def losses(seed: int, *steps: int) -> list[float]:
        torch.manual_seed(0)
        config = _model("gpt2-nano").config.replace(dropout=0.5)
        torch.manual_seed(0)
        engine = single(af.build(config), seed=seed)
        return [engine.step(step, _batch("gpt2-nano"), 0.0)[0].item() for step in steps]

    first = losses(1, 0, 1, 2)
    assert len(set(first)) == 3
    assert losses(1, 2) == first[2:]
    assert losses(2, 0) != first[:1]


def test_float16_leaves_out_a_step_that_overflows_and_goes_on():
    model, batch = _model("gpt2-nano"), _batch("gpt2-nano")
    engine = single(model, HALF)
    engine._scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    done = engine.step(0, batch, 1e-2)
    assert math.isfinite(done[0])
    assert done[1] == 0.0
    assert all(torch.equal(now, then) for now, then in zip(model.parameters(), before, strict=True))
    norms = [engine.step(step, batch, 1e-2)[1].item() for step in range(1, 40)]
    assert norms[-1] > 0


def test_a_checkpoint_does_not_unpack_what_is_quantized(monkeypatch: pytest.MonkeyPatch):
    model = add_adapter(quantize(_model("llama-nano"), "int4"), LoraConfig(rank=2))
    strategy = single(model, FLOAT)
    monkeypatch.setattr(QuantizedMatrix, "unpacked", None)
    state = strategy.state()
    trained = {f"model.{name}": each for name, each in model.named_parameters() if each.requires_grad}
    assert {name for name in state if name.startswith("model.")} == trained.keys()
    assert all(state[name].data_ptr() == each.data_ptr() for name, each in trained.items())
