from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anyformer.data.objectives import IGNORED, OBJECTIVES, Batch, Causal, Masked, objective
from anyformer.errors import UserError
from anyformer.tokenizer import Tokenizer

quick = settings(deadline=None, max_examples=60)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(["the quick brown fox"], "char", special="masked")


def test_causal_targets_are_the_next_tokens():
    windows = np.arange(12).reshape(2, 6)
    owned = np.ones_like(windows, dtype=bool)
    owned[1, 4:] = False
    batch = Causal()(windows, owned, None, np.random.default_rng(0))
    assert batch.tokens.tolist() == windows[:, :-1].tolist()
    assert batch.targets.tolist() == [[1, 2, 3, 4, 5], [7, 8, 9, IGNORED, IGNORED]]
    assert batch.predicted == 8
    assert batch.mask is None


@quick
@given(
    rows=st.integers(1, 4),
    length=st.integers(1, 60),
    seed=st.integers(0, 2**32),
    before=st.sampled_from([None, 1]),
    after=st.sampled_from([None, 2]),
)
def test_masked(rows: int, length: int, seed: int, before: int | None, after: int | None):
    make = Masked(0, np.arange(3, 50), np.arange(3), before, after)
    draw = np.random.default_rng(seed)
    windows = draw.integers(0, 50, (rows, length))
    owned = draw.random((rows, length)) < 0.9
    batch = make(windows, owned, None, np.random.default_rng(seed))
    again = make(windows, owned, None, np.random.default_rng(seed))
    assert (batch.tokens == again.tokens).all()
    assert (batch.targets == again.targets).all()
    context = make.stride(100)
    assert batch.tokens.shape == batch.targets.shape == (rows, length + 100 - context)
    inner = slice(int(before is not None), batch.tokens.shape[1] - int(after is not None))
    tokens, targets = batch.tokens[:, inner], batch.targets[:, inner]
    if before is not None:
        assert (batch.tokens[:, 0] == before).all()
        assert (batch.targets[:, 0] == IGNORED).all()
    if after is not None:
        assert (batch.tokens[:, -1] == after).all()
        assert (batch.targets[:, -1] == IGNORED).all()
    chosen = targets != IGNORED
    assert (targets[chosen] == windows[chosen]).all()
    assert (tokens[~chosen] == windows[~chosen]).all()
    assert not (chosen & ~(owned & (windows >= 3))).any()
    candidates = (owned & (windows >= 3)).sum(axis=1)
    expected = [max(1, round(0.15 * c)) if c else 0 for c in candidates.tolist()]
    assert chosen.sum(axis=1).tolist() == expected
    assert ((tokens == 0) | (tokens >= 3))[chosen].all()


def test_masked_shares_are_those_of_bert():
    make = Masked(0, np.arange(3, 30_000), np.arange(3))
    windows = np.random.default_rng(1).integers(3, 30_000, (200, 1000))
    batch = make(windows, np.ones_like(windows, dtype=bool), None, np.random.default_rng(2))
    chosen = batch.targets != IGNORED
    assert chosen.mean() == 0.15
    hidden = (batch.tokens == 0)[chosen].mean()
    kept = (batch.tokens == windows)[chosen].mean()
    assert hidden == pytest.approx(0.8, abs=0.01)
    assert kept == pytest.approx(0.1, abs=0.01)
    assert np.ptp(chosen.mean(axis=0)) < 0.2


def test_padding_is_masked():
    make = Masked(0, np.arange(3, 50), np.arange(3), 1, 2)
    present = np.array([[True, True, False]])
    batch = make(np.array([[5, 6, 0]]), present, present, np.random.default_rng(0))
    assert batch.mask is not None
    assert batch.mask.tolist() == [[True, True, True, False, True]]


def test_objectives_by_name(tokenizer: Tokenizer):
    assert objective("causal", tokenizer) == Causal()
    made = objective("masked", tokenizer)
    assert isinstance(made, Masked)
    assert (made.mask_id, made.before, made.after) == (tokenizer.mask, tokenizer.cls, tokenizer.sep)
    assert set(made.ordinary.tolist()) == set(range(tokenizer.vocab_size)) - tokenizer.special_ids
    assert set(OBJECTIVES) == {"causal", "masked"}
    with pytest.raises(UserError, match="did you mean 'masked'"):
        objective("maskd", tokenizer)
    with pytest.raises(UserError, match="mask token"):
        objective("masked", Tokenizer.train(["abc"], "char"))


def test_a_batch_counts_its_targets():
    assert Batch(np.zeros((1, 3), dtype=np.int64), np.array([[1, IGNORED, 0]])).predicted == 2
