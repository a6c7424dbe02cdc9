"""Words and short passages of a text, in any language or in source code, and statistics of its words."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple, Self

import numpy as np

from anyformer.tokenizer import Tokenizer

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


def later_indices(inside: Sequence[Word], rng: np.random.Generator) -> list[int]:
    """Indices of words of a text's second half but the last, in any order, so that words stand on both sides."""
    return rng.permutation(np.arange(max(1, len(inside) // 2), len(inside) - 1)).tolist()


@dataclass(frozen=True, slots=True)
class WordStatistics:
    """The words of a corpus.

    Attributes:
        counts, total: Occurrences of each in the text that models are trained on, and of all.
        neighbors: Words that follow one another, in that text or in the one held out, with what is between them.
    """

    counts: Counter[str]
    total: int
    neighbors: frozenset[str]

    @classmethod
    def of(cls, train_texts: Iterable[str], held_out_texts: Iterable[str]) -> Self:
        """Count the words of texts, or of the first four million characters."""
        counts, neighbors = Counter[str](), set[str]()
        for texts, counted in ((train_texts, counts), (held_out_texts, Counter[str]())):
            for text in _first(texts):
                inside = words(text)
                counted.update(word.text for word in inside)
                neighbors.update(text[a.begin : b.end] for a, b in pairwise(inside) if b.begin - a.end <= _GAP)
        return cls(counts, counts.total(), frozenset(neighbors))

    def is_frequent(self, word: str) -> bool:
        """Whether a model that was trained on the text may know a word."""
        return self.counts[word] >= FREQUENT

    def has(self, left: str, gap: str, right: str) -> bool:
        """Whether a word follows another one somewhere in the corpus."""
        return left + gap + right in self.neighbors

    def expected(self, left: str, right: str) -> float:
        """Expected number of times that a word follows another one, were words drawn one by one."""
        return self.counts[left] * self.counts[right] / max(1, self.total)


def _first(texts: Iterable[str]) -> Iterator[str]:
    left = _CHARACTERS
    for text in texts:
        yield text[:left]
        left -= len(text)
        if left <= 0:
            return


_BOUNDARY = re.compile(r"\n+|(?<=[.!?])[ \t]+|[。！？]")
_CHUNK = 8
"""Characters that are read on from a random place, for each token of a passage: about two passages."""
_FEWEST_WORDS = 4
_LONGEST_TOKEN = 12
"""Characters of a token, more than nearly all have: what is encoded to find so many tokens."""


def passages(
    texts: Sequence[str],
    tokenizer: Tokenizer,
    *,
    count: int,
    max_tokens: int,
    seed: int,
    unlike: Sequence[str] = (),
) -> list[str]:
    """Draw passages from random places of texts. No two of them overlap, or are equal.

    Args:
        max_tokens: Tokens of a passage; it has at least half as many, and four words.
        unlike: Texts in which none of them occurs.
    """
    chunks = [chunk for text in texts for chunk in _chunks(text, _CHUNK * max_tokens)]
    np.random.default_rng(seed).shuffle(chunks)
    drawn = dict[str, None]()
    for passage in (passage for chunk in chunks for passage in _walk(chunk, tokenizer, max_tokens)):
        if len(drawn) == count:
            break
        if passage not in drawn and not any(passage in text for text in unlike):
            drawn[passage] = None
    return list(drawn)


def _chunks(text: str, size: int) -> Iterator[str]:
    begin = 0
    while begin < len(text):
        cut = _BOUNDARY.search(text, min(begin + size, len(text)))
        end = cut.end() if cut else len(text)
        yield text[begin:end]
        begin = end


def _walk(text: str, tokenizer: Tokenizer, max_tokens: int) -> Iterator[str]:
    begin = 0
    while begin < len(text):
        window = text[begin : begin + _LONGEST_TOKEN * max_tokens]
        ids, offsets = tokenizer.encode_offsets(window)
        room = len(window) if len(ids) <= max_tokens else offsets[max_tokens - 1][1]
        half = offsets[min(len(ids), max_tokens // 2) - 1][1] if ids else room
        ends = [match.end() for match in _BOUNDARY.finditer(window) if half <= match.end() <= room]
        inside = words(window[:room])
        cut = ends[-1] if ends else inside[-1].end if inside else 0
        passage = window[:cut].rstrip()
        size = len(tokenizer.encode(passage, special=False))
        if max_tokens // 2 <= size <= max_tokens and len(words(passage)) >= _FEWEST_WORDS:
            yield passage
        after = _BOUNDARY.search(text, begin + max(1, len(passage)))
        begin = after.end() if after else len(text)
