"""Cloze: which of four words was removed from a passage?

The other three are words of the corpus with as many tokens and about as many occurrences, which were seen beside
neither of the blank's neighbors, or not beside both: so neither length nor frequency tells them apart.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np

from anyformer.compare.tasks.choices import Choice, Ids, Objective, TaskResult, encode, log_scores
from anyformer.compare.tasks.words import FREQUENT, Word, WordStatistics, later_places, words
from anyformer.model import Transformer
from anyformer.tokenizer import Tokenizer

CANDIDATES = 4
RATIO = 1.5
"""Largest ratio of the occurrences of two candidates."""
_FEWEST, _MOST = 24, 200
_NEAREST = 60
"""Words of about the same frequency that are tried."""


class Blank(NamedTuple):
    """A passage without one of its words.

    Attributes:
        before, after: The passage.
        candidates: The word that was removed, and three others.
        choices: The tokens of the passage with each of them.
    """

    before: str
    after: str
    candidates: tuple[str, ...]
    choices: tuple[Choice, ...]


@dataclass(frozen=True, slots=True)
class Cloze:
    """The task.

    Attributes:
        blanks: Its items.
        reason: Why it is left out; None: it isn't.
    """

    name: ClassVar[str] = "cloze"
    blanks: tuple[Blank, ...]
    reason: str | None = None

    @classmethod
    def make(cls, passages: Sequence[str], known: WordStatistics, tokenizer: Tokenizer, seed: int) -> Cloze:
        """Remove a word from each passage that has one with enough others like it."""
        rng = np.random.default_rng(seed)
        vocabulary = _Vocabulary(known)
        blanks = list[Blank]()
        for passage in passages:
            blank = _blank(passage, vocabulary, tokenizer, rng)
            blanks += [blank] if blank else []
            if len(blanks) == _MOST:
                break
        if len(blanks) < _FEWEST:
            return cls((), f"The held-out text is too short for a cloze test: it gives {len(blanks)} of {_FEWEST}.")
        return cls(tuple(blanks))

    def run(self, model: Transformer, tokenizer: Tokenizer, objective: Objective | None) -> TaskResult:
        """Score a model. Raises UserError as `log_scores`."""
        scores = list[float]()
        if self.blanks:
            choices = [choice for blank in self.blanks for choice in blank.choices]
            found = np.array(log_scores(model, tokenizer, choices, objective, whole=False)).reshape(-1, CANDIDATES)
            # The first is right; where others tie with it, as much of the point as a guess among them would earn.
            best = found >= found.max(axis=1, keepdims=True)
            scores = (best[:, 0] / best.sum(axis=1)).tolist()
        return TaskResult(
            name=self.name, measure="accuracy", chance=1 / CANDIDATES, items=tuple(scores), reason=self.reason
        )


class _Vocabulary:
    """The frequent words of a corpus, by frequency."""

    def __init__(self, known: WordStatistics) -> None:
        self.known = known
        frequent = ((count, word) for word, count in known.counts.items() if count >= FREQUENT)
        self.sorted = sorted(frequent)

    def like(self, word: str) -> list[str]:
        """Words that occur about as often."""
        count = self.known.counts[word]
        place = bisect.bisect_left(self.sorted, (count, word))
        near = self.sorted[max(0, place - _NEAREST) : place + _NEAREST]
        # The largest ratio of any two candidates, and not only of each to the word.
        side = RATIO**0.5
        return [other for often, other in near if other != word and count / side <= often <= count * side]


def _blank(passage: str, vocabulary: _Vocabulary, tokenizer: Tokenizer, rng: np.random.Generator) -> Blank | None:
    found = words(passage)
    ids, offsets = tokenizer.encode_offsets(passage)
    for index in later_places(found, rng):
        left, word, right = found[index - 1 : index + 2]
        if not vocabulary.known.is_frequent(word.text) or word.text.isdigit():
            continue
        place = _place(offsets, word)
        if place[0] == 0:
            continue
        before, after = passage[: word.begin], passage[word.end :]
        candidates, texts = [word.text], [tuple(ids)]
        others = vocabulary.like(word.text)
        for other in (others[each] for each in rng.permutation(len(others))):
            gaps = passage[left.end : word.begin], passage[word.end : right.begin]
            known = vocabulary.known
            if known.knows(left.text, gaps[0], other) and known.knows(other, gaps[1], right.text):
                continue
            text = encode(before + other + after, tokenizer)
            if _differs_only_at(place, texts[0], text):
                candidates.append(other)
                texts.append(text)
            if len(candidates) == CANDIDATES:
                choices = tuple(Choice(text, (place,)) for text in texts)
                return Blank(before, after, tuple(candidates), choices)
    return None


def _place(offsets: Sequence[tuple[int, int]], word: Word) -> tuple[int, int]:
    """The first and the last token, exclusive, of a word."""
    inside = [index for index, (begin, end) in enumerate(offsets) if begin < word.end and end > word.begin]
    return (inside[0], inside[-1] + 1) if inside else (0, 0)


def _differs_only_at(place: tuple[int, int], text: Ids, other: Ids) -> bool:
    begin, end = place
    return len(text) == len(other) and text[:begin] == other[:begin] and text[end:] == other[end:]
