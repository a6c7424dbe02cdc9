"""Padding to a few shapes changes no loss."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from anyformer.config import ModelConfig
from anyformer.data.batch import IGNORED, Batch, EmbeddingBatch
from anyformer.families import preset
from anyformer.model import build
from anyformer.training.batcher import padded
from anyformer.training.losses import EmbeddingLoss, LossModule
from anyformer.training.strategies.base import model_inputs

SIZES = {"d_model": 16, "max_length": 24, "vocab_size": 40, "feed_forward.width": 16, "attention.heads": 2}


def _config(name: str, **changes: object) -> ModelConfig:
    config = preset(name)
    one = {stack: min(1, getattr(config, stack)) for stack in ("encoder_layers", "decoder_layers")}
    heads = {"attention.kv_heads": None, "attention.head_dim": None}
    return config.replace(**SIZES, **one, **heads, **changes)


def _batch(config: ModelConfig, rows: int, time: int) -> Batch:
    chance = np.random.default_rng(rows * time)
    tokens, targets, source = chance.integers(4, 40, (3, rows, time))
    real = np.arange(time) < chance.integers(1, time + 1, (rows, 1))
    if config.head.kind == "classification":
        return Batch(tokens, targets[:, 0] % 3, real if rows % 2 else None)
    targets[~real] = IGNORED
    if config.is_encoder_decoder:
        return Batch(tokens, targets, source=source, source_mask=real if rows % 2 else None)
    if config.is_encoder_only:
        return Batch(tokens, targets, real if rows % 2 else None, segments=real.astype(np.int64))
    return Batch(tokens, targets, documents=np.cumsum(tokens % 5 == 0, axis=1))


CLASSES = {"head.kind": "classification", "head.labels": 3}
CONFIGS = {
    "decoder": _config("llama-nano"),
    "experts": _config("mixtral-nano"),
    "encoder": _config("bert-tiny"),
    "both": _config("t5-nano"),
    "classifier": _config("bert-tiny", **CLASSES),
    "last token": _config("gpt2-nano", **CLASSES, **{"head.pooling": "last"}),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_the_loss_stays(name: str) -> None:
    config = CONFIGS[name]
    torch.manual_seed(0)
    loss = LossModule(build(config)).eval()
    shapes = set[tuple[int, ...]]()
    for rows in (3, 9):
        for time in (5, 21):
            batch = _batch(config, rows, time)
            more = padded(batch, config, devices=4)
            shapes.add(more.tokens.shape)
            found, wanted = (loss(**model_inputs(each, torch.device("cpu"))).item() for each in (more, batch))
            assert found == pytest.approx(wanted, rel=1e-5), (rows, time)
    assert shapes == {(rows, time) for rows in (4, 12) for time in (16, 24)}


def test_examples_that_are_compared_stay_as_many() -> None:
    config = _config("bert-tiny")
    torch.manual_seed(0)
    loss = EmbeddingLoss(build(config).eval(), "in_batch_negatives")
    tokens = np.random.default_rng(0).integers(4, 40, (6, 11))
    batch = EmbeddingBatch(tokens, np.zeros(3, np.int64), slots=np.arange(3))
    more = padded(batch, config, devices=4)
    assert more.tokens.shape == (6, 16)
    found, wanted = (loss(**model_inputs(each, torch.device("cpu"))).item() for each in (more, batch))
    assert found == pytest.approx(wanted, rel=1e-5)


def test_what_fits_stays_as_it_is() -> None:
    """As all batches of training from text do, which have the model's longest length."""
    config = _config("t5-nano")
    tokens = np.zeros((8, 24), np.int64)
    batch = padded(Batch(tokens, tokens, source=tokens), config, devices=4)
    assert batch.mask is None
    assert batch.source_mask is None
    assert batch.tokens.shape == tokens.shape
