"""Cloze: which of four words was removed from a passage?

The other three are words of the corpus with as many tokens and about as many occurrences, which were seen beside
neither of the blank's neighbors, or not beside both: so neither length nor frequency tells them apart.
"""

import bisect
from collections.abc import Iterator, Sequence
from itertools import islice

import numpy as np

from anyformer.compare.tasks.choices import Choice, ChoiceTask, Item, Span, encode
from anyformer.compare.tasks.words import FREQUENT, Word, WordStatistics, later_indices, words
from anyformer.tokenizer import Tokenizer

OPTIONS = 4
RATIO = 1.5
"""Largest ratio of the occurrences of two words of an item."""
_FEWEST, _MOST = 24, 200
_NEAREST = 60
"""Words of about the same frequency that are tried."""

_ByCount = list[tuple[int, str]]
"""The frequent words of a corpus and their counts, sorted."""


def make_cloze(passages: Sequence[str], statistics: WordStatistics, tokenizer: Tokenizer, seed: int) -> ChoiceTask:
    """Remove a word from each passage that has one with enough others like it."""
    rng = np.random.default_rng(seed)
    by_count = sorted((count, word) for word, count in statistics.counts.items() if count >= FREQUENT)
    blanks = (item for passage in passages for item in _blank(passage, statistics, by_count, tokenizer, rng))
    items = tuple(islice(blanks, _MOST))
    reason = None
    if len(items) < _FEWEST:
        reason = f"The held-out text is too short for a cloze test: it gives {len(items)} of {_FEWEST}."
    return ChoiceTask(name="cloze", options=OPTIONS, whole=False, items=() if reason else items, reason=reason)


def _blank(
    passage: str, statistics: WordStatistics, by_count: _ByCount, tokenizer: Tokenizer, rng: np.random.Generator
) -> Iterator[Item]:
    """A passage with each of four words in one place, if there are such."""
    inside = words(passage)
    ids, offsets = tokenizer.encode_offsets(passage)
    for index in later_indices(inside, rng):
        left, word, right = inside[index - 1 : index + 2]
        if not statistics.is_frequent(word.text) or word.text.isdigit():
            continue
        begin, end = span = _span(offsets, word)
        if begin == 0:
            continue
        before, after = passage[: word.begin], passage[word.end :]
        gaps = passage[left.end : word.begin], passage[word.end : right.begin]
        texts, choices = [passage], [tuple(ids)]
        others = _alike(word.text, statistics, by_count)
        for other in (others[each] for each in rng.permutation(len(others))):
            if statistics.has(left.text, gaps[0], other) and statistics.has(other, gaps[1], right.text):
                continue
            choice = encode(before + other + after, tokenizer)
            if len(choice) == len(ids) and choice[:begin] == choices[0][:begin] and choice[end:] == choices[0][end:]:
                texts.append(before + other + after)
                choices.append(choice)
            if len(choices) == OPTIONS:
                yield Item("", tuple(texts), tuple(Choice(choice, (span,)) for choice in choices))
                return


def _alike(word: str, statistics: WordStatistics, by_count: _ByCount) -> list[str]:
    count = statistics.counts[word]
    index = bisect.bisect_left(by_count, (count, word))
    near = by_count[max(0, index - _NEAREST) : index + _NEAREST]
    # The largest ratio of any two words of an item, and not only of each to the right one.
    side = RATIO**0.5
    return [other for often, other in near if other != word and count / side <= often <= count * side]


def _span(offsets: Sequence[Span], word: Word) -> Span:
    inside = [index for index, (begin, end) in enumerate(offsets) if begin < word.end and end > word.begin]
    return (inside[0], inside[-1] + 1) if inside else (0, 0)
