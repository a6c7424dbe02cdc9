"""Tokenized examples of each task: their lengths, and batches of any of them.

Rows are padded on the right to the longest one. A decoder needs no mask for that: what follows a token is hidden from
it anyway.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from typing_extensions import override

from anyformer.data.batch import IGNORED, Batch, Bool, EmbeddingBatch, Float32, Int64, PreferenceBatch
from anyformer.data.examples.encoded import LearnedTokens

Ids = Sequence[int]


class Dataset(ABC):
    """Tokenized examples."""

    __slots__ = ()

    @property
    @abstractmethod
    def lengths(self) -> Int64:
        """[examples] tokens of the longest row of each."""

    @abstractmethod
    def collate(self, members: Sequence[int]) -> Batch:
        """A batch of the examples of these numbers."""


@dataclass(frozen=True, slots=True)
class CausalDataset(Dataset):
    """Texts for a decoder, some tokens of which are learned.

    Attributes:
        rows: Each is one or several texts, which do not see each other (see `pack`).
    """

    rows: Sequence[Sequence[LearnedTokens]]
    pad: int

    @property
    @override
    def lengths(self) -> Int64:
        return np.array([sum(len(text.tokens) - 1 for text in row) for row in self.rows], np.int64)

    @override
    def collate(self, members: Sequence[int]) -> Batch:
        rows = [self.rows[member] for member in members]
        tokens = _padded([[token for text in row for token in text.tokens[:-1]] for row in rows], self.pad)
        targets = _padded([[target for text in row for target in _targets(text)] for row in rows], IGNORED)
        if all(len(row) == 1 for row in rows):
            return Batch(tokens, targets)
        numbers = [[number for number, text in enumerate(row) for _ in text.tokens[:-1]] for row in rows]
        # Padding is a document of its own, which nothing is learned from.
        return Batch(tokens, targets, documents=_padded(numbers, max(map(len, rows))))


def pack(texts: Sequence[LearnedTokens], capacity: int) -> list[list[LearnedTokens]]:
    """Put texts into rows of at most so many input tokens: each into the fullest row that has room for it.

    The longest first (best-fit decreasing), so that little room is left over.
    """
    rows: list[list[LearnedTokens]] = []
    by_room: dict[int, list[int]] = {}
    for text in sorted(texts, key=lambda text: len(text.tokens), reverse=True):
        length = len(text.tokens) - 1
        room = min((left for left, found in by_room.items() if found and left >= length), default=capacity)
        if by_room.get(room):
            row = by_room[room].pop()
            rows[row].append(text)
        else:
            row = len(rows)
            rows.append([text])
        by_room.setdefault(room - length, []).append(row)
    return rows


@dataclass(frozen=True, slots=True)
class PreferenceDataset(Dataset):
    """Pairs of answers to the same prompt.

    Attributes:
        chosen, rejected: Prompt and answer, of which the answer is learned.
        reference: [examples, 2] their log-probabilities under the reference model; zeros until they are known.
    """

    chosen: Sequence[LearnedTokens]
    rejected: Sequence[LearnedTokens]
    pad: int
    reference: Float32 = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "reference", np.zeros((len(self.chosen), 2), np.float32))

    @property
    @override
    def lengths(self) -> Int64:
        pairs = zip(self.chosen, self.rejected, strict=True)
        return np.array([max(len(a.tokens), len(b.tokens)) - 1 for a, b in pairs], np.int64)

    @override
    def collate(self, members: Sequence[int]) -> PreferenceBatch:
        texts = [text for member in members for text in (self.chosen[member], self.rejected[member])]
        return PreferenceBatch(
            _padded([text.tokens[:-1] for text in texts], self.pad),
            _padded([_targets(text) for text in texts], IGNORED),
            reference=self.reference[list(members)].reshape(-1),
        )


@dataclass(frozen=True, slots=True)
class LabeledDataset(Dataset):
    """Texts with something to be said about each, or about some of its tokens.

    Attributes:
        labels: [examples] classes (int64) or numbers (float32), or [examples, labels] which labels each has (float32);
            or a list for each text with the class or the number of each token, IGNORED for those that have none.
        segments: Of each token of a pair the text that it belongs to; None where the model has no segments.
        dtype: That of the targets of tokens: int64 for classes, float32 for numbers.
    """

    texts: Sequence[Ids]
    labels: Int64 | Float32 | Sequence[Sequence[float]]
    pad: int
    segments: Sequence[Ids] | None = None
    dtype: type[np.int64] | type[np.float32] = np.int64

    @property
    @override
    def lengths(self) -> Int64:
        return np.array([len(text) for text in self.texts], np.int64)

    @override
    def collate(self, members: Sequence[int]) -> Batch:
        texts, labels = [self.texts[member] for member in members], self.labels
        if isinstance(labels, np.ndarray):
            targets = labels[list(members)]
        else:
            targets = _padded([labels[member] for member in members], IGNORED, self.dtype)
        segments = None if self.segments is None else _padded([self.segments[member] for member in members], 0)
        return Batch(_padded(texts, self.pad), targets, _mask(texts), segments)


@dataclass(frozen=True, slots=True)
class EmbeddingDataset(Dataset):
    """Texts whose vectors are compared: as many of each example.

    Attributes:
        labels: [examples] the score of each pair (float32), or the class of each text or pair (int64).
    """

    texts: Sequence[Sequence[Ids]]
    labels: Int64 | Float32
    pad: int

    @property
    @override
    def lengths(self) -> Int64:
        return np.array([max(map(len, texts)) for texts in self.texts], np.int64)

    @override
    def collate(self, members: Sequence[int]) -> EmbeddingBatch:
        texts = [text for member in members for text in self.texts[member]]
        slots = np.arange(len(members), dtype=np.int64)
        return EmbeddingBatch(_padded(texts, self.pad), self.labels[list(members)], _mask(texts), slots=slots)


@dataclass(frozen=True, slots=True)
class Seq2SeqDataset(Dataset):
    """Sources and targets, each with its end.

    Attributes:
        start: The decoder's first input.
    """

    sources: Sequence[Ids]
    targets: Sequence[Ids]
    pad: int
    start: int

    @property
    @override
    def lengths(self) -> Int64:
        pairs = zip(self.sources, self.targets, strict=True)
        return np.array([max(len(source), len(target)) for source, target in pairs], np.int64)

    @override
    def collate(self, members: Sequence[int]) -> Batch:
        sources, targets = ([side[member] for member in members] for side in (self.sources, self.targets))
        tokens = _padded([[self.start, *target[:-1]] for target in targets], self.pad)
        return Batch(tokens, _padded(targets, IGNORED), source=_padded(sources, self.pad), source_mask=_mask(sources))


def _targets(text: LearnedTokens) -> list[int]:
    """What each token but the last predicts."""
    return [token if learned else IGNORED for token, learned in zip(text.tokens[1:], text.learned[1:], strict=True)]


def _padded(rows: Sequence[Sequence[float]], value: int, dtype: type = np.int64) -> Any:
    """[rows, longest] rows filled up on the right."""
    filled = np.full((len(rows), max(map(len, rows))), value, dtype)
    for number, row in enumerate(rows):
        filled[number, : len(row)] = row
    return filled


def _mask(rows: Sequence[Ids]) -> Bool | None:
    """[rows, longest] False for padding; None where there is none."""
    lengths = np.array([len(row) for row in rows])
    return None if (lengths == lengths.max()).all() else np.arange(lengths.max()) < lengths[:, None]
