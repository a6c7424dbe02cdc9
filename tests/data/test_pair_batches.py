from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anyformer.data.batch import IGNORED, Batch
from anyformer.data.pair_batches import PairBatches
from anyformer.errors import UserError

quick = settings(max_examples=80)
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
def test_a_batch_is_a_pure_function(sizes: list[tuple[int, int]], batch_tokens: int, seed: int, step: int):
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


def test_bad_sizes():
    with pytest.raises(UserError, match="no pairs"):
        make(Pairs(np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)), 100)
    with pytest.raises(UserError, match="no room"):
        make(pairs_of([(3, 3)]), 1)
