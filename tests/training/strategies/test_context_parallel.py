"""Texts spread over processes are learned as by one process, or declined in a sentence."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.generation.models import config
from tests.training.parallel_worker import MODELS, differences, train, train_in_four

from anyformer.config import EmbeddingConfig, HeadConfig
from anyformer.data.batch import IGNORED, Batch
from anyformer.errors import UserError
from anyformer.training.strategies.context_parallel import check_model, stretch
from anyformer.training.strategies.group import Group

DECLINED = {"n-grams", "n-grams both"}


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_two_by_two_processes_equal_one(tmp_path: Path) -> None:
    jobs = [{"name": name, "context_parallel": 2} for name in MODELS if name not in DECLINED]
    both = ("grouped", "sandwich", "latent", "relative both", "disentangled", "many experts", "masked")
    jobs += [{"name": name, "context_parallel": 2, "tensor_parallel": 2} for name in both]
    jobs += [{"name": name, "context_parallel": 4} for name in ("windowed", "relative both", "dynamic")]
    for job, found in zip(jobs, train_in_four(tmp_path, jobs), strict=True):
        wanted = train(Group(), job["name"])
        assert {name: size for name, size in differences(found, wanted).items() if size > 1e-5} == {}, job


@given(st.integers(1, 5), st.integers(1, 13), st.integers(1, 9), st.booleans(), st.integers(1, 4))
def test_stretches_make_up_the_batch(rows: int, time: int, source: int, masked: bool, count: int) -> None:
    """What is added behind it is neither predicted nor seen."""
    tokens, targets = np.arange(rows * time).reshape(rows, time) + 1, np.ones((rows, time), dtype=np.int64)
    mask = np.ones((rows, time), dtype=bool) if masked else None
    batch = Batch(tokens, targets, mask=mask, source=np.ones((rows, source), dtype=np.int64))
    parts = [stretch(batch, index, count) for index in range(count)]
    assert len({(part.tokens.shape, part.source.shape) for part in parts if part.source is not None}) == 1
    assert parts[0].tokens.shape[1] >= 2
    assert sum(part.predicted for part in parts) == batch.predicted
    whole = np.concatenate([part.tokens for part in parts], axis=1)
    assert (whole[:, :time] == tokens).all()
    assert (np.concatenate([part.targets for part in parts], axis=1)[:, time:] == IGNORED).all()
    for length, name in ((time, "mask"), (source, "source_mask")):
        masks = [getattr(part, name) for part in parts]
        if masks[0] is not None:
            seen = np.concatenate(masks, axis=1)
            assert (seen == (np.arange(seen.shape[1]) < length)).all()
        else:
            assert length % count == 0


def test_what_can_not_be_spread_is_declined() -> None:
    check_model(config())
    with pytest.raises(UserError, match=r"head\.kind is none"):
        check_model(config(head=HeadConfig(kind="none")))
    with pytest.raises(UserError, match=r"embedding\.ngrams"):
        check_model(config(embedding=EmbeddingConfig(ngrams=2, ngram_rows=7)))
    tokens = np.ones((1, 4), dtype=np.int64)
    with pytest.raises(UserError, match="a row as one text"):
        stretch(Batch(tokens, tokens, documents=tokens), 0, 2)
