"""Tokenized examples of each kind, and batches of them: batch(step) is a pure function of (dataset, seed, step).

Rows are padded on the right to the longest one. A decoder needs no mask for that: what follows a token is hidden from
it anyway.

An epoch is a shuffle of all examples. It is cut into pools of many batches, and examples of about equal length share a
batch of their pool, so that little is padding; the batches of a pool come in random order. Each example is in exactly
one batch of an epoch. An epoch of few batches stays as it was shuffled: a tagger learns more from batches of mixed
lengths, where a token counts as much in a short text as in a long one.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from anyformer.data.batch import IGNORED, Batch, EmbeddingBatch, Float32, Int64, PreferenceBatch, padded, padding_mask
from anyformer.data.batches import feistel_shuffle, mix_seed
from anyformer.data.examples.encoded import EncodedRow

Ids = Sequence[int]

_ORDER, _POOL = 6, 7  # other draws than those of `batches`
_POOL_BATCHES = 32, 128
"""Batches of a pool, at least and at most."""
_POOLS = 4
"""Fewest pools of an epoch: in one alone the same examples would meet again and again."""


@dataclass(frozen=True, slots=True, eq=False)
class Dataset:
    """Tokenized examples.

    Attributes:
        lengths: [examples] tokens of the longest row of each.
        collate: Makes a batch of the examples of these numbers.
        reference: [examples, 2] log-probabilities of pairs of answers under the reference model, zeros until they are
            known; None: there are no pairs.
    """

    lengths: Int64
    collate: Callable[[Sequence[int]], Batch]
    reference: Float32 | None = None


def causal(rows: Sequence[Sequence[EncodedRow]], pad: int) -> Dataset:
    """Texts for a decoder, some tokens of which are targets; in a row one or several, which do not see each other."""

    def collate(members: Sequence[int]) -> Batch:
        chosen = [rows[member] for member in members]
        tokens = padded([[token for text in row for token in text.tokens[:-1]] for row in chosen], pad)
        targets = padded([[target for text in row for target in _targets(text)] for row in chosen], IGNORED)
        if all(len(row) == 1 for row in chosen):
            return Batch(tokens, targets)
        numbers = [[number for number, text in enumerate(row) for _ in text.tokens[:-1]] for row in chosen]
        # Padding is a document of its own, without targets.
        return Batch(tokens, targets, documents=padded(numbers, max(map(len, chosen))))

    return Dataset(np.fromiter((sum(len(text.tokens) - 1 for text in row) for row in rows), np.int64), collate)


def pack(texts: Sequence[EncodedRow], capacity: int) -> list[list[EncodedRow]]:
    """Put texts into rows of at most so many input tokens: each into the fullest row that has room, the longest first.

    So little room is left over (best-fit decreasing).
    """
    rows: list[list[EncodedRow]] = []
    by_room: defaultdict[int, list[list[EncodedRow]]] = defaultdict(list)
    for text in sorted(texts, key=lambda text: len(text.tokens), reverse=True):
        length = len(text.tokens) - 1
        room = min((left for left, fitting in by_room.items() if fitting and left >= length), default=capacity)
        if by_room[room]:
            row = by_room[room].pop()
        else:
            rows.append(row := [])
        row.append(text)
        by_room[room - length].append(row)
    return rows


def preferences(chosen: Sequence[EncodedRow], rejected: Sequence[EncodedRow], pad: int) -> Dataset:
    """Pairs of a prompt with its better and with its worse answer; targets are the answers."""
    reference = np.zeros((len(chosen), 2), np.float32)

    def collate(members: Sequence[int]) -> PreferenceBatch:
        texts = [text for member in members for text in (chosen[member], rejected[member])]
        tokens = padded([text.tokens[:-1] for text in texts], pad)
        targets = padded([_targets(text) for text in texts], IGNORED)
        return PreferenceBatch(tokens, targets, reference=reference[list(members)].reshape(-1))

    pairs = zip(chosen, rejected, strict=True)
    return Dataset(np.fromiter((max(len(a.tokens), len(b.tokens)) - 1 for a, b in pairs), np.int64), collate, reference)


def labeled(texts: Sequence[Ids], labels: Int64 | Float32, pad: int, segments: Sequence[Ids] | None = None) -> Dataset:
    """Texts with something to be said about each.

    Args:
        labels: [examples] classes (int64) or numbers (float32), or [examples, labels] which labels each has (float32).
        segments: Of each token of a pair the text that it belongs to; None where the model has no segments.
    """

    def collate(members: Sequence[int]) -> Batch:
        rows = [texts[member] for member in members]
        kinds = None if segments is None else padded([segments[member] for member in members], 0)
        return Batch(padded(rows, pad), labels[list(members)], padding_mask(rows), kinds)

    return Dataset(np.fromiter(map(len, texts), np.int64), collate)


def tagged(texts: Sequence[Ids], tags: Sequence[Sequence[float]], pad: int, dtype: type = np.int64) -> Dataset:
    """Texts with the class (int64) or the number (float32) of some of their tokens.

    `tags` has one for each token, IGNORED for those that are not the first of a word.
    """

    def collate(members: Sequence[int]) -> Batch:
        rows = [texts[member] for member in members]
        return Batch(
            padded(rows, pad), padded([tags[member] for member in members], IGNORED, dtype), padding_mask(rows)
        )

    return Dataset(np.fromiter(map(len, texts), np.int64), collate)


def compared(texts: Sequence[Sequence[Ids]], labels: Int64 | Float32, pad: int) -> Dataset:
    """Texts whose vectors are compared, the same number of each example.

    `labels` are [examples] the score of each pair (float32), or the class of each text or pair (int64).
    """

    def collate(members: Sequence[int]) -> EmbeddingBatch:
        rows = [text for member in members for text in texts[member]]
        slots = np.arange(len(members), dtype=np.int64)
        return EmbeddingBatch(padded(rows, pad), labels[list(members)], padding_mask(rows), slots=slots)

    return Dataset(np.fromiter((max(map(len, each)) for each in texts), np.int64), collate)


def rewrites(sources: Sequence[Ids], targets: Sequence[Ids], pad: int, start: int) -> Dataset:
    """Sources and targets, each with its end; `start` is the decoder's first input."""

    def collate(members: Sequence[int]) -> Batch:
        read, written = ([side[member] for member in members] for side in (sources, targets))
        return Batch.of_pairs(read, written, pad, start)

    pairs = zip(sources, targets, strict=True)
    return Dataset(np.fromiter((max(len(source), len(target)) for source, target in pairs), np.int64), collate)


def _targets(text: EncodedRow) -> list[int]:
    pairs = zip(text.tokens[1:], text.loss_mask[1:], strict=True)
    return [token if is_target else IGNORED for token, is_target in pairs]


@dataclass(frozen=True, slots=True, eq=False)
class ExampleBatches:
    """Batches of a dataset.

    Attributes:
        batch_size: Examples of a batch; the last of an epoch may have fewer.
        by_length: Whether examples of about equal length share a batch, where there are enough of them.
    """

    dataset: Dataset
    batch_size: int
    seed: int = 0
    by_length: bool = True

    @property
    def steps_per_epoch(self) -> int:
        """Batches after which each example was seen once."""
        return -(-len(self.dataset.lengths) // self.batch_size)

    @property
    def pool_batches(self) -> int:
        """Batches of a pool; the last of an epoch may have fewer. 1: too few to be grouped by length."""
        fewest, most = _POOL_BATCHES
        batches = min(most, self.steps_per_epoch // _POOLS)
        return batches if batches >= fewest else 1

    def batch(self, step: int) -> Batch:
        """The batch of a step, counted from 0: the same whenever and wherever it is asked for."""
        return self.dataset.collate(self.members(step))

    def members(self, step: int) -> list[int]:
        """The numbers of the examples of a step."""
        epoch, number = divmod(step, self.steps_per_epoch)
        pool, index = divmod(number, self.pool_batches)
        return _pool(self, epoch, pool)[index]

    def validation(self, batch_tokens: int, every: int = 1) -> Iterator[Batch]:
        """Every so many-th batch of the examples in order of length, the same at each call."""
        for members in self.validation_members(batch_tokens)[::every]:
            yield self.dataset.collate(members)

    def validation_members(self, batch_tokens: int) -> list[list[int]]:
        """The numbers of the examples of each batch of `validation`: rows times the longest are about so many tokens,
        and at least as many examples as in training."""
        batches, lengths = list[list[int]]([[]]), self.dataset.lengths
        for index in np.argsort(lengths, kind="stable").tolist():
            members = len(batches[-1])
            if members >= self.batch_size and (members + 1) * lengths[index] > batch_tokens:
                batches.append([])
            batches[-1].append(index)
        return batches


@lru_cache(maxsize=4)
def _pool(batches: ExampleBatches, epoch: int, pool: int) -> list[list[int]]:
    """The batches of a pool, which is the same for many steps."""
    lengths, size = batches.dataset.lengths, batches.batch_size
    first = pool * batches.pool_batches * size
    indices = np.arange(first, min(first + batches.pool_batches * size, len(lengths)))
    members = feistel_shuffle(indices, len(lengths), mix_seed(batches.seed, _ORDER, epoch))
    if batches.by_length:
        members = members[np.argsort(lengths[members], kind="stable")]
    edges = range(0, len(members), size)
    shuffled: list[list[int]] = [members[edge : edge + size].tolist() for edge in edges]
    order = feistel_shuffle(np.arange(len(shuffled)), len(shuffled), mix_seed(batches.seed, _POOL, epoch, pool))
    return [shuffled[number] for number in order.tolist()]
