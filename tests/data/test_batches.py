from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anyformer.data.batch import IGNORED, Batch
from anyformer.data.batches import (
    Batches,
    PairBatches,
    count_validation_batches,
    feistel_shuffle,
    mix_seed,
    validation_batches,
)
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


PAD, EOS, START = 0, 1, 2


@dataclass
class Pairs:
    """Pairs whose ids say which they are: 1000 i + place in the source, and 500 more in the target."""

    source_lengths: npt.NDArray[np.int64]
    target_lengths: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.source_lengths)

    def source(self, index: int) -> npt.NDArray[np.uint32]:
        return np.arange(self.source_lengths[index], dtype=np.uint32) + 1000 * (index + 1)

    def target(self, index: int) -> npt.NDArray[np.uint32]:
        return np.arange(self.target_lengths[index], dtype=np.uint32) + 1000 * (index + 1) + 500


lengths = st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), min_size=1, max_size=80)


def pairs_of(sizes: list[tuple[int, int]]) -> Pairs:
    both = np.array(sizes, dtype=np.int64)
    return Pairs(both[:, 0], both[:, 1])


def make(pairs: Pairs, batch_tokens: int, seed: int = 0, context: int | None = None) -> PairBatches:
    return PairBatches(pairs, batch_tokens, seed, eos=EOS, pad=PAD, start=START, context=context)


def read(batch: Batch, pairs: Pairs, longest: int) -> list[int]:
    """The numbers of the batch's pairs, once it is sure that each row is what it should be."""
    assert batch.source is not None
    assert batch.tokens.shape == batch.targets.shape
    assert batch.tokens.dtype == batch.targets.dtype == batch.source.dtype == np.int64
    mask = np.ones_like(batch.source, dtype=bool) if batch.source_mask is None else batch.source_mask
    assert batch.source_mask is None or not mask.all()
    assert (batch.source[~mask] == PAD).all()
    assert mask.any(axis=0).all(), "no column of padding alone"
    assert (batch.targets != IGNORED).any(axis=0).all()
    found: list[int] = []
    for row in range(len(batch.tokens)):
        source, targets = batch.source[row][mask[row]].tolist(), batch.targets[row]
        target = targets[targets != IGNORED].tolist()
        assert source.pop() == target.pop() == EOS
        written = len(target) + 1
        assert batch.tokens[row, :written].tolist() == [START, *target]
        assert (batch.tokens[row, written:] == PAD).all()
        assert (targets[written:] == IGNORED).all()
        index = (source or target)[0] // 1000 - 1 if source or target else -1
        if index >= 0:
            assert source == pairs.source(index)[: longest - 1].tolist()
            assert target == pairs.target(index)[: longest - 1].tolist()
        found.append(index)
    return found


@quick
@given(
    sizes=lengths,
    batch_tokens=st.integers(2, 200),
    context=st.none() | st.integers(2, 40),
    seed=st.integers(0, 2**63),
    epoch=st.integers(0, 3),
)
def test_every_pair_once_an_epoch(
    sizes: list[tuple[int, int]], batch_tokens: int, context: int | None, seed: int, epoch: int
):
    pairs = pairs_of(sizes)
    batches = make(pairs, batch_tokens, seed, context)
    longest = min(batch_tokens, context or batch_tokens)
    found: list[int] = []
    members: list[int] = []
    predicted = 0
    for step in range(epoch * batches.steps_per_epoch, (epoch + 1) * batches.steps_per_epoch):
        batch = batches.batch(step)
        assert batch.source is not None
        assert max(batch.source.size, batch.tokens.size) <= batch_tokens
        assert max(batch.source.shape[1], batch.tokens.shape[1]) <= longest
        predicted += batch.predicted
        numbers = read(batch, pairs, longest)
        own = batches.members(step).tolist()
        assert all(a in (b, -1) for a, b in zip(numbers, own, strict=True))
        found += numbers
        members += own
    assert sorted(members) == list(range(len(sizes)))
    assert predicted == batches.tokens_per_epoch
    assert batches.truncated == sum(max(pair) + 1 > longest for pair in sizes)


@quick
@given(sizes=lengths, batch_tokens=st.integers(2, 200), seed=st.integers(0, 2**63), step=st.integers(0, 10**9))
def test_a_batch_of_pairs_is_a_pure_function(sizes: list[tuple[int, int]], batch_tokens: int, seed: int, step: int):
    pairs = pairs_of(sizes)
    one = make(pairs, batch_tokens, seed).batch(step)
    other = make(pairs, batch_tokens, seed)
    other.batch(step + 1)
    again = other.batch(step)
    assert (one.tokens == again.tokens).all()
    assert (one.targets == again.targets).all()
    assert one.source is not None
    assert again.source is not None
    assert (one.source == again.source).all()


@quick
@given(sizes=lengths, batch_tokens=st.integers(2, 200), seed=st.integers(0, 2**63))
def test_epochs_have_the_same_shapes(sizes: list[tuple[int, int]], batch_tokens: int, seed: int):
    batches = make(pairs_of(sizes), batch_tokens, seed)

    def shapes(epoch: int) -> list[tuple[int, ...]]:
        steps = range(epoch * batches.steps_per_epoch, (epoch + 1) * batches.steps_per_epoch)
        made = [batches.batch(step) for step in steps]
        return sorted((*b.tokens.shape, b.source.shape[1]) for b in made if b.source is not None)

    assert shapes(0) == shapes(1)


@quick
@given(sizes=lengths, batch_tokens=st.integers(2, 200), every=st.integers(1, 4))
def test_validation_is_everything_once_in_order_of_length(sizes: list[tuple[int, int]], batch_tokens: int, every: int):
    pairs = pairs_of(sizes)
    batches = make(pairs, batch_tokens)
    made = list(batches.validation())
    again = list(batches.validation())
    assert len(made) == batches.steps_per_epoch
    found = [number for batch in made for number in read(batch, pairs, batch_tokens) if number >= 0]
    assert sorted(found) == [index for index, pair in enumerate(sizes) if any(pair)]
    widths = [batch.source.shape[1] for batch in made if batch.source is not None]
    assert widths == sorted(widths)
    assert all((a.tokens == b.tokens).all() for a, b in zip(made, again, strict=True))
    some = list(batches.validation(every))
    assert len(some) == len(made[::every])
    assert all((a.tokens == b.tokens).all() for a, b in zip(made[::every], some, strict=True))


def test_order_and_company_change_from_epoch_to_epoch():
    draw = np.random.default_rng(0)
    pairs = Pairs(draw.integers(5, 9, 2000), draw.integers(5, 9, 2000))
    batches = make(pairs, 200, seed=1)
    n = batches.steps_per_epoch
    epochs = [[tuple(sorted(batches.members(epoch * n + step).tolist())) for step in range(n)] for epoch in range(3)]
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert len(set(epochs[0]) & set(epochs[1])) < n / 10, "ties are broken anew"
    widths = [batch.tokens.shape[1] for batch in map(batches.batch, range(n))]
    assert widths != sorted(widths)
    assert make(pairs, 200, seed=2).members(0).tolist() != batches.members(0).tolist()


def test_little_is_padding():
    draw = np.random.default_rng(0)
    source = draw.poisson(13, 20_000) + 1
    pairs = Pairs(source, np.maximum(1, source + draw.integers(-4, 5, 20_000)))
    batches = make(pairs, 4096)
    real = cells = 0
    for step in range(batches.steps_per_epoch):
        batch = batches.batch(step)
        assert batch.source is not None
        real += batch.predicted + (batch.source != PAD).sum()
        cells += batch.tokens.size + batch.source.size
    assert real / cells > 0.96


def test_bad_sizes_of_pairs():
    with pytest.raises(UserError, match="no pairs"):
        make(Pairs(np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)), 100)
    with pytest.raises(UserError, match="no room"):
        make(pairs_of([(3, 3)]), 1)
