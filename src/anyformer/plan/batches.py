"""Batches of random tokens in the shape that an objective's have, each text as long as the context."""

from collections.abc import Callable

import numpy as np

from anyformer.config import ModelConfig
from anyformer.data.batch import IGNORED, Batch, Rng
from anyformer.data.span_corruption import SpanCorruption
from anyformer.tasks.seq2seq import random_pairs
from anyformer.tasks.task import random_ids
from anyformer.training.config import CompleteRunConfig

_MASKED = 0.15
"""Share of the tokens that a masked language model predicts (Devlin et al. 2019, section 3.1)."""


def _causal(config: CompleteRunConfig, model: ModelConfig, rng: Rng) -> Batch:
    windows = rng.integers(model.vocab_size, size=(config.batch_size, config.context + 1))
    documents = np.zeros((config.batch_size, config.context), np.int64)
    is_apart = bool(getattr(config, "document_masking", False) or getattr(config, "packing", False))
    return Batch(windows[:, :-1].copy(), windows[:, 1:].copy(), documents=documents if is_apart else None)


def _masked(config: CompleteRunConfig, model: ModelConfig, rng: Rng) -> Batch:
    tokens = random_ids(config, model, rng)
    hidden = rng.permuted(np.arange(tokens.size) < _MASKED * tokens.size).reshape(tokens.shape)
    return Batch(tokens, np.where(hidden, tokens, IGNORED))


def _span_corruption(config: CompleteRunConfig, model: ModelConfig, rng: Rng) -> Batch:
    objective = SpanCorruption((0,) * config.context, 0, 0, 0)
    source, target = objective.lengths(objective.stride(config.context))
    return random_pairs(model, rng, config.batch_size, source, target)


def _seq2seq(config: CompleteRunConfig, model: ModelConfig, rng: Rng) -> Batch:
    return random_pairs(model, rng, max(1, config.batch_tokens // config.context), config.context, config.context)


OBJECTIVES: dict[str, Callable[[CompleteRunConfig, ModelConfig, Rng], Batch]] = {
    "causal": _causal,
    "masked": _masked,
    "span_corruption": _span_corruption,
    "seq2seq": _seq2seq,
}
"""The batch of all processes, by objective, given a config with its batch size and context, and a model."""
