"""Every preset computes on torch's meta device, which has no numbers: nothing mixes devices or waits for the host."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from anyformer.blocks.head import LanguageModelHead
from anyformer.data.batch import IGNORED, Batch, EmbeddingBatch, PreferenceBatch
from anyformer.families import PRESETS
from anyformer.model import Transformer, skeleton
from anyformer.runs.metrics import evaluate
from anyformer.training.losses import EMBEDDING_LOSSES, PAIR_CLASSIFIER, EmbeddingLoss, PreferenceLoss
from anyformer.training.precision import Precision
from tests.training.conftest import single

layers = pytest.mark.parametrize("layers", [2, pytest.param(1000, marks=pytest.mark.slow)], ids=["two", "all"])
"""How many of a stack there are at most: the others repeat them."""


def _model(name: str, layers: int) -> Transformer:
    config = PRESETS[name]
    stacks = {stack: min(getattr(config, stack), layers) for stack in ("encoder_layers", "decoder_layers")}
    other, count = config.other_layers, max(stacks.values())
    is_cut = other is not None and len(other.first) > count
    first = {"other_layers.first": other.first[: count - 1]} if is_cut else {}  # one layer of the usual kind is left
    return skeleton(config.replace(**stacks, **first))


@layers
@pytest.mark.parametrize("name", PRESETS)
def test_forward_loss_and_backward(name: str, layers: int) -> None:
    model = _model(name, layers).train()
    tokens = torch.zeros(2, 8, dtype=torch.long, device="meta")
    inputs = {"source": tokens} if model.config.is_encoder_decoder else {}
    output = model(tokens, **inputs)
    assert output.hidden.device.type == "meta"
    if not isinstance(model.head, LanguageModelHead):
        return
    loss = model(tokens, targets=tokens, return_logits=False, **inputs).loss
    loss.backward()
    assert all(parameter.grad is not None for parameter in model.head.parameters())
    assert model.token_embedding.table.weight.grad is not None


@layers
@pytest.mark.parametrize("name", [name for name, config in PRESETS.items() if config.decoder_layers])
def test_a_cached_step(name: str, layers: int) -> None:
    model = _model(name, layers).eval()
    tokens = torch.zeros(2, 4, dtype=torch.long, device="meta")
    cache = model.make_cache(2, 8)
    inputs = {"source": tokens} if model.config.is_encoder_decoder else {}
    with torch.no_grad():
        model(tokens, cache=cache, last_only=True, **inputs)
        output = model(tokens[:, :1], cache=cache, last_only=True)
    assert output.logits is None or output.logits.shape[1] == 1
    assert cache.length == 5


META = Precision(torch.device("meta"), torch.float32, "for a test")
ROWS, TIME = 4, 8
IDS = np.arange(ROWS * TIME).reshape(ROWS, TIME) % 7
REAL = np.arange(TIME) < np.array([[TIME], [5], [3], [TIME]])
TARGETS = np.where(REAL, IDS, IGNORED)
SOURCE = {"source": IDS, "source_mask": REAL}
BATCHES: dict[str, tuple[str, Batch]] = {
    "plain": ("gpt2-nano", Batch(IDS, IDS)),
    "padded": ("llama-nano", Batch(IDS, TARGETS, REAL)),
    "documents": ("llama-nano", Batch(IDS, TARGETS, documents=IDS // 3)),
    "experts": ("mixtral-8x7b", Batch(IDS, TARGETS, REAL)),
    "encoder": ("bert-tiny", Batch(IDS, TARGETS, REAL, IDS // 4)),
    "skipped padding": ("roberta-base", Batch(IDS, TARGETS, REAL)),
    "disentangled": ("deberta-v3-base", Batch(IDS, TARGETS, REAL)),
    "relative": ("t5-small", Batch(IDS, TARGETS, **SOURCE)),
    "sinusoidal": ("transformer-tiny", Batch(IDS, TARGETS, **SOURCE)),
}


class _Portable(TorchDispatchMode):
    """Refuses what not every accelerator computes: float64, and sums of a mask that are no masks."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and tensor.is_meta:
                assert tensor.dtype != torch.float64, func
        if func is torch.ops.aten.cumsum.default:
            assert args[0].dtype != torch.bool or kwargs, func
        return result


def _step_and_evaluation(model: Transformer, batch: Batch, **changes: Any) -> None:
    """Where the host waited for a number, or for how many there are, torch would refuse."""
    strategy = single(model, META, **changes)
    losses: list[torch.Tensor] = []
    with _Portable():
        for number in range(2):
            assert strategy.step(number, batch, 1e-3).is_meta
        evaluate(lambda part: losses.append(strategy.evaluate(part)) or 0.0, [batch])
    assert losses[0].is_meta


@pytest.mark.parametrize("name", BATCHES)
def test_a_step_and_an_evaluation_wait_for_nothing(name: str) -> None:
    preset, batch = BATCHES[name]
    _step_and_evaluation(_model(preset, 2), batch)


@pytest.mark.parametrize(
    "changes",
    [
        {"optimizer": "muon", "label_smoothing": 0.1},
        {"grad_accumulation": 3, "gradient_checkpointing": True, "average": "ema:0.9"},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_nor_do_other_ways_of_taking_a_step(changes: dict[str, Any]) -> None:
    _step_and_evaluation(_model("llama-nano", 2), BATCHES["padded"][1], **changes)


def _embedding(model: Transformer, kind: str) -> nn.Module:
    if kind == "softmax":
        model.add_module(PAIR_CLASSIFIER, nn.Linear(3 * model.config.d_model, 2, device="meta"))
    return EmbeddingLoss(model, kind)


def _compared(kind: str) -> Batch:
    labels = IDS[: ROWS if kind == "class_triplet" else ROWS // 2, 1] % 2
    tokens = IDS[[0, 1, 2, 0, 1, 2]] if kind == "triplet" else IDS
    mask = REAL[[0, 1, 2, 0, 1, 2]] if kind == "triplet" else REAL
    return EmbeddingBatch(tokens, labels, mask, slots=np.arange(len(labels)))


LOSSES: dict[str, tuple[str, Batch, Callable[[Transformer], nn.Module]]] = {
    "preference": (
        "llama-nano",
        PreferenceBatch(IDS, TARGETS, reference=np.zeros(ROWS, np.float32)),
        PreferenceLoss,
    ),
    **{kind: ("bert-tiny", _compared(kind), partial(_embedding, kind=kind)) for kind in EMBEDDING_LOSSES},
}


@pytest.mark.parametrize("name", LOSSES)
def test_nor_do_other_losses(name: str) -> None:
    preset, batch, loss = LOSSES[name]
    _step_and_evaluation(_model(preset, 2), batch, loss=loss)


@pytest.mark.parametrize(
    ("preset", "kind"),
    [("gpt2-nano", "classification"), ("bert-tiny", "classification"), ("bert-tiny", "token_classification")],
)
def test_nor_does_a_classifier(preset: str, kind: str) -> None:
    config = PRESETS[preset]
    pooling = "last" if config.decoder_layers else "first"
    model = skeleton(config.replace(**{"head.kind": kind, "head.labels": 3, "head.pooling": pooling}))
    _step_and_evaluation(model, Batch(IDS, TARGETS if kind == "token_classification" else IDS[:, 1] % 3, REAL))
