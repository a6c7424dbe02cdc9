"""The words of a text, in any language or in source code, and what a corpus knows of them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np

FREQUENT = 10
"""Occurrences of a word in the training text from which on a model may know it."""
_WORD = re.compile(r"\w+")
_CHARACTERS = 4_000_000
"""Characters of a corpus that are counted: enough for its frequent words."""
_GAP = 3
"""Characters between two words that are said to follow one another, at most."""


class Word(NamedTuple):
    """A word, and where in its text it begins and ends."""

    text: str
    begin: int
    end: int


def words(text: str) -> list[Word]:
    """The words of a text: runs of letters, digits and underscores."""
    return [Word(match.group(), match.start(), match.end()) for match in _WORD.finditer(text)]


def later_places(found: Sequence[Word], rng: np.random.Generator) -> list[int]:
    """Places of words of a text's second half, so that something comes before, in any order; the last is none."""
    return rng.permutation(np.arange(max(1, len(found) // 2), len(found) - 1)).tolist()


@dataclass(frozen=True, slots=True)
class WordStatistics:
    """The words of a corpus.

    Attributes:
        counts: How often each occurs in the text that models are trained on.
        total: How many there are in it.
        neighbors: Words that follow one another, in that text or in the one held out, with what is between them.
    """

    counts: Counter[str]
    total: int
    neighbors: frozenset[str]

    @classmethod
    def of(cls, train_texts: Iterable[str], held_out_texts: Iterable[str]) -> WordStatistics:
        """Count the words of texts, or of the first four million characters."""
        counts, seen = Counter[str](), set[str]()
        for text in _first(train_texts):
            found = words(text)
            counts.update(word.text for word in found)
            seen.update(_neighbors(text, found))
        for text in _first(held_out_texts):
            seen.update(_neighbors(text, words(text)))
        return cls(counts, counts.total(), frozenset(seen))

    def is_frequent(self, word: str) -> bool:
        """Whether a model that was trained on the text may know a word."""
        return self.counts[word] >= FREQUENT

    def knows(self, left: str, gap: str, right: str) -> bool:
        """Whether a word follows another one somewhere in the corpus."""
        return left + gap + right in self.neighbors

    def expected(self, left: str, right: str) -> float:
        """How often a word would follow another one, were words drawn one by one."""
        return self.counts[left] * self.counts[right] / max(1, self.total)


def _neighbors(text: str, found: list[Word]) -> Iterator[str]:
    return (text[a.begin : b.end] for a, b in pairwise(found) if b.begin - a.end <= _GAP)


def _first(texts: Iterable[str]) -> Iterator[str]:
    left = _CHARACTERS
    for text in texts:
        yield text[:left]
        left -= len(text)
        if left <= 0:
            return
