"""Batches of random tokens in the shape that a task's have, each text as long as the context."""

from collections.abc import Callable

import numpy as np

from anyformer.config import ModelConfig
from anyformer.data.batch import IGNORED, Batch, EmbeddingBatch, PreferenceBatch, Rng
from anyformer.data.span_corruption import SpanCorruption
from anyformer.training.run_config import CompleteRunConfig

_MASKED = 0.15
"""Share of the tokens that a masked language model predicts (Devlin et al. 2019, section 3.1)."""


def random_batch(task: str, config: CompleteRunConfig, model: ModelConfig) -> Batch:
    """A batch of all processes.

    Args:
        task: An objective of training, or a task of fine-tuning.
        config: Its batch size and context.
        model: With the head of the task.
    """
    return _BATCHES[task](config, model, np.random.default_rng(config.seed))


def _ids(model: ModelConfig, rng: Rng, rows: int, length: int) -> np.ndarray[tuple[int, int], np.dtype[np.int64]]:
    return rng.integers(model.vocab_size, size=(rows, length))


def _causal(config: CompleteRunConfig, model: ModelConfig, rng: Rng) -> Batch:
    windows = _ids(model, rng, config.batch_size, config.context + 1)
    documents = np.zeros((config.batch_size, config.context), np.int64)
    is_apart = bool(getattr(config, "document_masking", False) or getattr(config, "packing", False))
    return Batch(windows[:, :-1].copy(), windows[:, 1:].copy(), documents=documents if is_apart else None)


def _masked(config: CompleteRunConfig, model: ModelConfig, rng: Rng) -> Batch:
    tokens = _ids(model, rng, config.batch_size, config.context)
    hidden = rng.permuted(np.arange(tokens.size) < _MASKED * tokens.size).reshape(tokens.shape)
    return Batch(tokens, np.where(hidden, tokens, IGNORED))


def _span_corruption(config: CompleteRunConfig, model: ModelConfig, rng: Rng) -> Batch:
    objective = SpanCorruption((0,) * config.context, 0, 0, 0)
    source, target = objective.lengths(objective.stride(config.context))
    return _pairs(model, rng, config.batch_size, source, target)


def _seq2seq(config: CompleteRunConfig, model: ModelConfig, rng: Rng) -> Batch:
    # Pairs come in batches of so many tokens when a model is trained, and of so many pairs when it is fine-tuned.
    rows = config.batch_size if hasattr(config, "base") else max(1, config.batch_tokens // config.context)
    return _pairs(model, rng, rows, config.context, config.context)


def _pairs(model: ModelConfig, rng: Rng, rows: int, source: int, target: int) -> Batch:
    tokens = _ids(model, rng, rows, target)
    words = rng.integers(model.source_vocab_size or model.vocab_size, size=(rows, source))
    return Batch(tokens, tokens.copy(), source=words)


def _preference(config: CompleteRunConfig, model: ModelConfig, rng: Rng) -> Batch:
    tokens = _ids(model, rng, 2 * config.batch_size, config.context)
    return PreferenceBatch(tokens, tokens.copy(), reference=np.zeros(len(tokens), np.float32))


def _classify(config: CompleteRunConfig, model: ModelConfig, rng: Rng) -> Batch:
    tokens = _ids(model, rng, config.batch_size, config.context)
    if model.head.problem_type == "multi_label_classification":
        return Batch(tokens, np.zeros((len(tokens), model.head.labels), np.float32))
    if model.head.problem_type == "regression":
        return Batch(tokens, np.zeros(len(tokens), np.float32))
    return Batch(tokens, np.zeros(len(tokens), np.int64))


def _tag(config: CompleteRunConfig, model: ModelConfig, rng: Rng) -> Batch:
    tokens = _ids(model, rng, config.batch_size, config.context)
    return Batch(tokens, np.zeros_like(tokens))


def _embed(config: CompleteRunConfig, model: ModelConfig, rng: Rng) -> Batch:
    tokens = _ids(model, rng, 2 * config.batch_size, config.context)
    return EmbeddingBatch(tokens, np.zeros(config.batch_size, np.int64))


_BATCHES: dict[str, Callable[[CompleteRunConfig, ModelConfig, Rng], Batch]] = {
    "causal": _causal,
    "masked": _masked,
    "span_corruption": _span_corruption,
    "seq2seq": _seq2seq,
    "chat": _causal,
    "completion": _causal,
    "preference": _preference,
    "classify": _classify,
    "tag": _tag,
    "embed": _embed,
}
