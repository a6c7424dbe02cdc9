from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anyformer.data.batch import IGNORED
from anyformer.data.batches import Batches, count_validation_batches, validation_batches
from anyformer.data.feistel_shuffle import feistel_shuffle, mix_seed
from anyformer.data.objectives import Causal, Masked, Objective, SpanCorruption
from anyformer.errors import UserError

quick = settings(max_examples=100)
seeds = st.integers(0, 2**63)


@quick
@given(n=st.integers(1, 3000), key=st.integers(0, 2**64 - 1))
def test_permute_is_a_bijection(n: int, key: int):
    image = feistel_shuffle(np.arange(n), n, key)
    assert sorted(image.tolist()) == list(range(n))


@quick
@given(n=st.integers(2, 2**40), key=st.integers(0, 2**64 - 1), data=st.data())
def test_permute_of_large_ranges_stays_inside_and_apart(n: int, key: int, data: st.DataObject):
    index = np.array(data.draw(st.lists(st.integers(0, n - 1), unique=True, min_size=1, max_size=50)))
    image = feistel_shuffle(index, n, key)
    assert ((image >= 0) & (image < n)).all()
    assert len(set(image.tolist())) == len(index)
    assert image.tolist() == [int(feistel_shuffle(np.array([i]), n, key)[0]) for i in index]
    assert feistel_shuffle(index.reshape(1, -1), n, key).tolist() == [image.tolist()]


def test_permute_shuffles():
    n = 10_000
    images = [feistel_shuffle(np.arange(n), n, key) for key in range(4)]
    for a in images:
        # the correlations of uniform shuffles are about 1 / sqrt(n)
        assert abs(np.corrcoef(a, np.arange(n))[0, 1]) < 0.05
        assert abs(np.corrcoef(a[:-1], a[1:])[0, 1]) < 0.05
        assert sum((a == b).all() for b in images) == 1


def test_derive_tells_its_parts_apart():
    keys = {mix_seed(a, b, c) for a in range(10) for b in range(10) for c in range(10)}
    assert len(keys) == 1000


shapes = st.tuples(st.integers(1, 12), st.integers(1, 5)).flatmap(
    lambda s: st.tuples(st.just(s[0]), st.just(s[1]), st.integers(s[0] + 1, 150))
)


@quick
@given(shape=shapes, seed=seeds, epoch=st.integers(0, 5))
def test_every_token_is_predicted_once_an_epoch(shape: tuple[int, int, int], seed: int, epoch: int):
    context, batch_size, n = shape
    stream = np.arange(n, dtype=np.uint16)
    batches = Batches(stream, context, batch_size, seed)
    first, last = epoch * batches.windows_per_epoch, (epoch + 1) * batches.windows_per_epoch
    predicted: list[int] = []
    for step in range(first // batch_size, (last - 1) // batch_size + 1):
        batch = batches.batch(step)
        assert batch.tokens.shape == batch.targets.shape == (batch_size, context)
        assert batch.tokens.dtype == batch.targets.dtype == np.int64
        assert batch.mask is None
        for row in range(batch_size):
            if first <= step * batch_size + row < last:
                real = batch.targets[row] != IGNORED
                assert ((batch.targets[row] == batch.tokens[row] + 1) | ~real).all()
                predicted += batch.targets[row][real].tolist()
    assert sorted(predicted) == list(range(1, n))


@quick
@given(shape=shapes, seed=seeds, step=st.integers(0, 10**9))
def test_a_batch_is_a_pure_function(shape: tuple[int, int, int], seed: int, step: int):
    context, batch_size, n = shape
    stream = np.arange(n, dtype=np.uint32)
    one = Batches(stream, context, batch_size, seed).batch(step)
    other = Batches(stream, context, batch_size, seed)
    other.batch(step + 1)
    again = other.batch(step)
    assert (one.tokens == again.tokens).all()
    assert (one.targets == again.targets).all()
    split = Batches(stream, context, 1, seed)
    rows = [split.batch(step * batch_size + row).tokens[0] for row in range(batch_size)]
    assert (np.stack(rows) == one.tokens).all()


def test_epochs_and_seeds_differ():
    stream = np.arange(1000, dtype=np.uint16)
    batches = Batches(stream, 10, 100, seed=1)
    assert batches.windows_per_epoch == 100
    epochs = [batches.batch(step).tokens for step in range(3)]
    assert len({e.tobytes() for e in epochs}) == 3
    assert (
        len(
            {e[:, 0].min() % 10 for e in epochs}
            | {int(Batches(stream, 10, 100, s).batch(0).tokens[0, 0]) % 10 for s in range(20)}
        )
        > 3
    )
    assert (Batches(stream, 10, 100, seed=2).batch(0).tokens != epochs[0]).any()


@pytest.mark.parametrize("n", [0, 1, 8])
def test_too_short_data(n: int):
    with pytest.raises(UserError, match=rf"{n} tokens, and one context of 8 needs 9.*shorter context"):
        Batches(np.zeros(n, dtype=np.uint16), 8, 2, 0)
    Batches(np.zeros(9, dtype=np.uint16), 8, 2, 0).batch(0)


@quick
@given(shape=shapes, seed=seeds, step=st.integers(0, 30), every=st.integers(2, 20))
def test_documents_begin_after_a_separator_and_with_the_stream(
    shape: tuple[int, int, int], seed: int, step: int, every: int
):
    context, batch_size, n = shape
    stream = np.arange(1, n + 1, dtype=np.uint16)
    stream[::every] = 0
    stream[0] = 1
    plain = Batches(stream, context, batch_size, seed).batch(step)
    batch = Batches(stream, context, batch_size, seed, Causal(reset=True, separator=0)).batch(step)
    assert plain.documents is None
    assert (batch.tokens == plain.tokens).all()
    assert (batch.targets == plain.targets).all()
    assert batch.documents is not None
    assert batch.documents.shape == batch.tokens.shape
    begins = np.diff(batch.documents, axis=1)
    assert set(np.unique(begins).tolist()) <= {0, 1}
    assert ((begins == 1) == np.isin(batch.tokens[:, 1:], (0, 1))).all()


@quick
@given(context=st.integers(3, 40), batch_size=st.integers(1, 5), n=st.integers(2, 150), seed=seeds)
def test_span_corruption_predicts_no_token_twice(context: int, batch_size: int, n: int, seed: int):
    spans = SpanCorruption(tuple(range(99, 49, -1)), eos=1, start=0, pad=0)
    stream = np.arange(100, 100 + n, dtype=np.uint16)
    predicted: list[int] = []
    for batch in validation_batches(stream, context, batch_size, spans, seed):
        assert batch.source is not None
        assert batch.source.shape == (batch_size, spans.lengths(spans.stride(context))[0])
        predicted += batch.targets[batch.targets >= 100].tolist()
    assert len(set(predicted)) == len(predicted)
    if n >= spans.stride(context):
        batches = Batches(stream, context, 3, seed, spans)
        predicted.clear()
        first = batches.windows_per_epoch
        for step in range(2 * first):  # a row at a time would be all the same
            batch = batches.batch(step)
            for row in range(3):
                if first <= 3 * step + row < 2 * first:
                    own = batch.targets[row]
                    predicted += own[own >= 100].tolist()
        assert len(set(predicted)) == len(predicted)


@quick
@given(context=st.integers(2, 12), batch_size=st.integers(1, 5), n=st.integers(2, 150), every=st.integers(1, 5))
def test_every_so_many_batches_of_validation(context: int, batch_size: int, n: int, every: int):
    stream = np.arange(10, 10 + n, dtype=np.uint16)
    for objective in (None, masked(None, None)):
        all_ = list(validation_batches(stream, context, batch_size, objective))
        some = list(validation_batches(stream, context, batch_size, objective, every=every))
        assert count_validation_batches(n, context, batch_size, objective) == len(all_)
        assert len(some) == len(all_[::every])
        for a, b in zip(some, all_[::every], strict=True):
            assert (a.tokens == b.tokens).all()
            assert (a.targets == b.targets).all()


def masked(before: int | None = 1, after: int | None = 2) -> Masked:
    return Masked(0, np.arange(3, 5000), np.array([0, 1, 2]), before, after)


@quick
@given(context=st.integers(1, 12), batch_size=st.integers(1, 5), n=st.integers(2, 150))
def test_validation_is_everything_once_in_order(context: int, batch_size: int, n: int):
    stream = np.arange(n, dtype=np.uint16)
    predicted: list[int] = []
    for batch in validation_batches(stream, context, batch_size):
        assert batch.tokens.shape == batch.targets.shape == (batch_size, context)
        real = batch.targets != IGNORED
        assert (batch.targets[real] == batch.tokens[real] + 1).all()
        assert batch.mask is None or batch.mask[real].all()
        assert (batch.mask is None) == (n > context)
        predicted += batch.targets[real].tolist()
    assert predicted == list(range(1, n))


@quick
@given(context=st.integers(3, 12), batch_size=st.integers(1, 5), n=st.integers(2, 150), seed=seeds)
def test_masked_windows_own_every_token_once(context: int, batch_size: int, n: int, seed: int):
    seen: list[int] = []

    class Spy(Masked):
        def __call__(self, windows, loss_mask, padding_mask, rng, stream_start=None):
            seen.extend(windows[loss_mask].tolist())
            return Masked.__call__(self, windows, loss_mask, padding_mask, rng, stream_start)

    spy: Objective = Spy(0, np.arange(3, 5000), np.array([0, 1, 2]), 1, 2)
    stream = np.arange(10, 10 + n, dtype=np.uint16)
    for batch in validation_batches(stream, context, batch_size, spy):
        assert batch.tokens.shape == (batch_size, context)
        assert (batch.tokens[:, 0] == 1).all()
        assert (batch.tokens[:, -1] == 2).all()
    assert seen == stream.tolist()
    if n >= context - 2:
        seen.clear()
        batches = Batches(stream, context, batches_per_epoch(n, context), seed, spy)
        batches.batch(3)
        assert sorted(seen) == stream.tolist()


def batches_per_epoch(n: int, context: int) -> int:
    return -(-n // (context - 2))


def test_validation_of_masks_is_the_same_each_time():
    stream = np.arange(10, 500, dtype=np.uint16)
    first = [b.tokens for b in validation_batches(stream, 16, 4, masked())]
    again = [b.tokens for b in validation_batches(stream, 16, 4, masked())]
    other = [b.tokens for b in validation_batches(stream, 16, 4, masked(), seed=1)]
    assert all((a == b).all() for a, b in zip(first, again, strict=True))
    assert any((a != b).any() for a, b in zip(first, other, strict=True))


def test_bad_sizes():
    with pytest.raises(UserError, match="1 tokens, at least 2"):
        validation_batches(np.zeros(1, dtype=np.uint16), 8, 2)
    with pytest.raises(UserError, match="context of 2 is too short"):
        Batches(np.zeros(100, dtype=np.uint16), 2, 2, 0, masked())
