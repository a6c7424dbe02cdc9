"""Batches of examples: each one once an epoch, the same whenever and wherever they are asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anyformer.data.batch import IGNORED, Batch
from anyformer.data.examples.datasets import (
    Dataset,
    ExampleBatches,
    causal,
    compared,
    labeled,
    pack,
    preferences,
    rewrites,
    tagged,
)
from anyformer.data.examples.encoded import EncodedRow

PAD = 0
IDS = st.lists(st.integers(1, 90), min_size=1, max_size=12)


def numbers(lengths: Sequence[int], size: int, seed: int, by_length: bool) -> ExampleBatches:
    """Batches of examples that are their own numbers."""

    def collate(members: Sequence[int]) -> Batch:
        tokens = np.array(members, np.int64)[:, None]
        return Batch(tokens, tokens)

    dataset = Dataset(np.array(lengths, np.int64), collate)
    return ExampleBatches(dataset, size, seed, by_length=by_length)


LENGTHS = st.lists(st.integers(1, 40), min_size=1, max_size=300)


@given(lengths=LENGTHS, size=st.integers(1, 9), seed=st.integers(0, 2**63 - 1), by_length=st.booleans())
def test_each_example_is_in_one_batch_of_an_epoch(lengths: list[int], size: int, seed: int, by_length: bool) -> None:
    batches = numbers(lengths, size, seed, by_length)
    steps = batches.steps_per_epoch
    assert steps == -(-len(lengths) // size)
    seen = [batches.members(step) for step in range(3 * steps)]
    for epoch in range(3):
        own = seen[epoch * steps : (epoch + 1) * steps]
        assert sorted(member for members in own for member in members) == list(range(len(lengths)))
        assert sum(len(members) < size for members in own) <= 1
    if len(lengths) > 40:
        assert seen[:steps] != seen[steps : 2 * steps] != seen[2 * steps :]
    # Another process, another order of questions.
    again = numbers(lengths, size, seed, by_length)
    for step in reversed(range(0, 3 * steps, 2)):
        assert again.members(step) == seen[step]
        assert again.batch(step).tokens[:, 0].tolist() == seen[step]


@given(lengths=LENGTHS, size=st.integers(1, 9), tokens=st.integers(1, 200), every=st.integers(1, 4))
def test_validation_is_every_example_once(lengths: list[int], size: int, tokens: int, every: int) -> None:
    batches = numbers(lengths, size, 0, True)
    found = batches.validation_members(tokens)
    assert sorted(member for members in found for member in members) == list(range(len(lengths)))
    for members in found:
        assert len(members) <= size or len(members) * max(lengths[member] for member in members) <= tokens
    assert all(len(members) >= size for members in found[:-1])
    read = [batch.tokens[:, 0].tolist() for batch in batches.validation(tokens, every)]
    assert read == found[::every]


@given(size=st.integers(2, 8), seed=st.integers(0, 9), steps=st.integers(128, 200))
def test_texts_of_about_equal_length_share_a_batch_of_a_pool(size: int, seed: int, steps: int) -> None:
    lengths = np.random.default_rng(seed).permutation(steps * size)
    batches = numbers(lengths.tolist(), size, seed, True)
    pool = batches.pool_batches
    assert 32 <= pool <= steps // 4
    for first in range(0, steps, pool):
        members = map(batches.members, range(first, min(first + pool, steps)))
        assert all(
            shorter[-1] < longer[0] for shorter, longer in pairwise(sorted(sorted(lengths[each]) for each in members))
        )


@given(size=st.integers(2, 8), seed=st.integers(0, 9))
def test_an_epoch_of_few_batches_stays_as_it_was_shuffled(size: int, seed: int) -> None:
    lengths = [*range(127 * size)]
    by_length, by_chance = (numbers(lengths, size, seed, given) for given in (True, False))
    for step in range(2 * 127):
        assert sorted(by_length.members(step)) == sorted(by_chance.members(step))


# packing


def learned(length: int) -> EncodedRow:
    return EncodedRow([1] * (length + 1), [True] * (length + 1))


@given(lengths=st.lists(st.integers(1, 30), min_size=1, max_size=120), spare=st.integers(0, 20))
def test_rows_have_room_and_lose_nothing(lengths: list[int], spare: int) -> None:
    texts = [learned(length) for length in lengths]
    capacity = max(lengths) + spare
    rows = pack(texts, capacity)
    assert sorted(id(text) for row in rows for text in row) == sorted(map(id, texts))
    used = [sum(len(text.tokens) - 1 for text in row) for row in rows]
    assert max(used) <= capacity
    # A row is begun only for a text that no other has room for.
    firsts = [len(row[0].tokens) - 1 for row in rows]
    for later in range(1, len(rows)):
        assert all(before + firsts[later] > capacity for before in used[:later])


# what a batch holds


@st.composite
def answers(draw: st.DrawFn) -> EncodedRow:
    tokens = draw(st.lists(st.integers(1, 90), min_size=2, max_size=12))
    return EncodedRow(tokens, draw(st.lists(st.booleans(), min_size=len(tokens), max_size=len(tokens))))


def unpadded(row: Any, length: int, value: int) -> list[int]:
    """A row without its padding, which must be all of this value."""
    assert (row[length:] == value).all()
    return row[:length].tolist()


def targets_of(text: EncodedRow) -> list[int]:
    pairs = zip(text.tokens, text.loss_mask, strict=True)
    return [token if is_learned else IGNORED for token, is_learned in pairs][1:]


def assert_mask(mask: Any, rows: Sequence[Sequence[int]]) -> None:
    lengths = [len(row) for row in rows]
    if mask is None:
        assert len(set(lengths)) == 1
    else:
        assert mask.sum(axis=1).tolist() == lengths
        assert all(row[:length].all() for row, length in zip(mask, lengths, strict=True))


MEMBERS = st.lists(st.integers(0, 4), min_size=1, max_size=7)


@given(texts=st.lists(answers(), min_size=5, max_size=5), members=MEMBERS)
def test_texts_of_a_decoder(texts: list[EncodedRow], members: list[int]) -> None:
    dataset = causal([[text] for text in texts], PAD)
    batch = dataset.collate(members)
    assert (batch.mask, batch.documents) == (None, None)
    for row, targets, member in zip(batch.tokens, batch.targets, members, strict=True):
        length = int(dataset.lengths[member])
        assert unpadded(row, length, PAD) == list(texts[member].tokens[:-1])
        assert unpadded(targets, length, IGNORED) == targets_of(texts[member])


@given(texts=st.lists(answers(), min_size=5, max_size=9), spare=st.integers(0, 30))
def test_texts_of_a_decoder_in_rows(texts: list[EncodedRow], spare: int) -> None:
    capacity = max(len(text.tokens) - 1 for text in texts) + spare
    packed = pack(texts, capacity)
    dataset = causal(packed, PAD)
    batch = dataset.collate(range(len(packed)))
    assert batch.tokens.shape[1] <= capacity
    documents = np.zeros_like(batch.tokens) if batch.documents is None else batch.documents
    found = []
    for number, row in enumerate(packed):
        assert dataset.lengths[number] == sum(len(text.tokens) - 1 for text in row)
        for index in range(len(row)):
            here = documents[number] == index
            if batch.documents is None:
                here[int(dataset.lengths[number]) :] = False
            found.append((batch.tokens[number, here].tolist(), batch.targets[number, here].tolist()))
    wanted = [(list(text.tokens[:-1]), targets_of(text)) for row in packed for text in row]
    assert found == wanted
    assert batch.predicted == sum(sum(text.loss_mask[1:]) for text in texts)


@given(pairs=st.lists(st.tuples(answers(), answers()), min_size=5, max_size=5), members=MEMBERS)
def test_preferences(pairs: list[tuple[EncodedRow, EncodedRow]], members: list[int]) -> None:
    dataset = preferences(*map(list, zip(*pairs, strict=True)), PAD)
    dataset.reference[:] = np.arange(10).reshape(5, 2)
    batch = dataset.collate(members)
    assert (batch.examples, batch.predicted) == (len(members), len(members))
    rows = [text for member in members for text in pairs[member]]
    for row, targets, text in zip(batch.tokens, batch.targets, rows, strict=True):
        assert unpadded(row, len(text.tokens) - 1, PAD) == list(text.tokens[:-1])
        assert unpadded(targets, len(text.tokens) - 1, IGNORED) == targets_of(text)
    assert batch.reference.tolist() == [2 * member + side for member in members for side in (0, 1)]


@given(texts=st.lists(IDS, min_size=5, max_size=5), members=MEMBERS, segments=st.booleans())
def test_classified_texts(texts: list[list[int]], members: list[int], segments: bool) -> None:
    labels = np.arange(5) * 7
    kinds = [[index % 2 for index in range(len(text))] for text in texts] if segments else None
    batch = labeled(texts, labels, PAD, kinds).collate(members)
    rows = [texts[member] for member in members]
    assert [unpadded(row, len(text), PAD) for row, text in zip(batch.tokens, rows, strict=True)] == rows
    assert batch.targets.tolist() == [7 * member for member in members]
    assert_mask(batch.mask, rows)
    assert (batch.segments is None) is not segments
    if batch.segments is not None:
        found = [unpadded(row, len(text), 0) for row, text in zip(batch.segments, rows, strict=True)]
        assert found == [[index % 2 for index in range(len(text))] for text in rows]


@given(texts=st.lists(IDS, min_size=5, max_size=5), members=MEMBERS)
def test_tagged_texts(texts: list[list[int]], members: list[int]) -> None:
    tags = [[token % 3 if token % 2 else IGNORED for token in text] for text in texts]
    batch = tagged(texts, tags, PAD).collate(members)
    rows = [texts[member] for member in members]
    assert [unpadded(row, len(text), PAD) for row, text in zip(batch.tokens, rows, strict=True)] == rows
    found = [unpadded(row, len(text), IGNORED) for row, text in zip(batch.targets, rows, strict=True)]
    assert found == [tags[member] for member in members]
    assert_mask(batch.mask, rows)


@given(data=st.data(), count=st.integers(1, 4), members=MEMBERS)
def test_texts_to_embed(data: st.DataObject, count: int, members: list[int]) -> None:
    texts = data.draw(st.lists(st.lists(IDS, min_size=count, max_size=count), min_size=5, max_size=5))
    dataset = compared(texts, np.arange(5).astype(np.float32) / 4, PAD)
    batch = dataset.collate(members)
    rows = [text for member in members for text in texts[member]]
    assert [unpadded(row, len(text), PAD) for row, text in zip(batch.tokens, rows, strict=True)] == rows
    assert batch.targets.tolist() == [member / 4 for member in members]
    assert (batch.examples, batch.predicted) == (len(members), len(members))
    assert dataset.lengths.tolist() == [max(map(len, each)) for each in texts]
    assert_mask(batch.mask, rows)


@given(pairs=st.lists(st.tuples(IDS, IDS), min_size=5, max_size=5), members=MEMBERS)
def test_sources_and_targets(pairs: list[tuple[list[int], list[int]]], members: list[int]) -> None:
    dataset = rewrites(*map(list, zip(*pairs, strict=True)), PAD, start=99)
    batch = dataset.collate(members)
    assert batch.source is not None
    for row, target, source, member in zip(batch.tokens, batch.targets, batch.source, members, strict=True):
        own, other = pairs[member]
        assert unpadded(source, len(own), PAD) == own
        assert unpadded(row, len(other), PAD) == [99, *other[:-1]]
        assert unpadded(target, len(other), IGNORED) == other
    assert batch.mask is None
    assert_mask(batch.source_mask, [pairs[member][0] for member in members])


def _dataset(kind: str, texts: list[list[int]], labels: Any) -> Dataset:
    read = [EncodedRow([7, *text], [False, *([True] * len(text))]) for text in texts]
    made: dict[str, Dataset] = {
        "causal": causal([[text] for text in read], PAD),
        "packed": causal(pack(read, 20), PAD),
        "preference": preferences(read, read[::-1], PAD),
        "classification": labeled(texts, labels, PAD),
        "tagging": tagged(texts, texts, PAD),
        "embedding": compared([texts[k : k + 2] for k in range(len(texts) - 1)], labels[1:], PAD),
        "seq2seq": rewrites(texts, texts[::-1], PAD, start=9),
    }
    return made[kind]


@pytest.mark.parametrize(
    "kind", ["causal", "packed", "preference", "classification", "tagging", "embedding", "seq2seq"]
)
@settings(max_examples=40)
@given(texts=st.lists(IDS, min_size=2, max_size=9), processes=st.integers(1, 4), accumulation=st.integers(1, 3))
def test_processes_and_parts_have_the_batch_among_them(
    kind: str, texts: list[list[int]], processes: int, accumulation: int
) -> None:
    dataset = _dataset(kind, texts, np.arange(len(texts)))
    batch = dataset.collate(range(len(dataset.lengths)))
    shares = [share for part in batch.split(accumulation) for share in part.split(processes)]
    assert sum(share.predicted for share in shares) == batch.predicted
    assert sum(share.examples for share in shares) == batch.examples
    for field in fields(batch):
        whole = getattr(batch, field.name)
        if whole is None:
            assert all(getattr(share, field.name) is None for share in shares)
        else:
            assert (np.concatenate([getattr(share, field.name) for share in shares]) == whole).all()
