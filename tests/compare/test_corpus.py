"""Every family reads a window whole: it can be restored from what the model reads and predicts."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anyformer.compare.corpus import (
    AROUND,
    Continuation,
    Filling,
    FromStart,
    Mixture,
    Spans,
    WindowObjective,
    Windows,
    window_objective,
)
from anyformer.compare.matching import read_models
from anyformer.data.batch import IGNORED, Batch, Int64
from anyformer.training.prepare import fit_model
from tests.compare.texts import tokenizer


def _restored(objective: WindowObjective | Spans | Continuation, batch: Batch) -> Int64:
    """The windows that a batch was made of."""
    targets = np.asarray(batch.targets)
    if isinstance(objective, FromStart):
        return targets
    if isinstance(objective, Filling):
        whole = np.where(targets == IGNORED, batch.tokens, targets)
        end = whole.shape[1] - (objective.masked.after is not None)
        return whole[:, int(objective.masked.before is not None) : end]
    assert batch.source is not None
    if isinstance(objective, Mixture):
        corrupted = batch.tokens.shape[1] > 1 and np.isin(targets, objective.spans.corruption.sentinels).any()
        return _restored(objective.spans if corrupted else objective.continuation, batch)
    if isinstance(objective, Continuation):
        return np.concatenate([batch.source[:, :-1], targets], axis=1)
    sentinels = objective.corruption.sentinels
    rows = []
    for source, target in zip(batch.source[:, :-1], targets[:, :-1], strict=True):
        kept, hidden = (np.split(part, np.flatnonzero(np.isin(part, sentinels))) for part in (source, target))
        spans = zip(kept, [*hidden[1:], hidden[0]], strict=True)  # before the first sentinel nothing is hidden
        rows.append(
            np.concatenate(
                [piece[i > 0 :] if piece is a else piece[1:] for i, (a, b) in enumerate(spans) for piece in (a, b)]
            )
        )
    return np.stack(rows)


@pytest.mark.parametrize("family", ["gpt2", "llama", "bert", "t5", "transformer"])
@given(rows=st.integers(1, 4), context=st.integers(16, 60), seed=st.integers(0, 99))
@settings(max_examples=12)
def test_a_window_is_read_whole(family: str, rows: int, context: int, seed: int) -> None:
    (model,) = read_models([family], "parameters")
    config = fit_model(model.config.replace(max_length=context), tokenizer(), None)
    objective = window_objective(config, tokenizer())
    seen: list[Int64] = []
    rng = np.random.default_rng(seed)
    ordinary = [n for n in range(tokenizer().vocab_size) if n not in tokenizer().special_ids]
    windows = rng.choice(ordinary, (rows, context - AROUND))
    batch = Windows(objective, seen.append)(windows, np.ones_like(windows, dtype=np.bool_), None, rng)
    assert np.array_equal(_restored(objective, batch), windows)
    assert np.array_equal(seen[0], windows)
