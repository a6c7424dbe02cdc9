"""Items of the tasks that a model does by the likelihood of texts, and the words and passages that they are made of.

Minimal pairs: of two texts with the same tokens in another order, is the likelier one right?

::

    word_order   two neighbors of a held-out passage swapped       the cat sat on / the cat on sat
    agreement    two frequent words, each in the other's frame     I am here, she is fine / I is here, she am fine

As in BLiMP (Warstadt et al. 2020) a model isn't asked, its likelihoods are compared; as in Zorro (Huebner et al. 2021)
the words are those that are frequent in the text that it was trained on. No grammar is needed: the passages and the
frames of `agreement` are from held-out text, and what a swap puts side by side occurs nowhere in the corpus. As both
texts have the same tokens, how frequent these are says nothing: a model that knows no order is right by chance.

So is one that was never trained. That rules out pairs of a doubled word, or of brackets the wrong way round: a model
whose embeddings are tied prefers a token after itself from the beginning, and one preference decides all pairs of (
and ).

Cloze: which of four words was removed from a passage? The other three are words of the corpus with as many tokens and
about as many occurrences, which were seen beside neither of the blank's neighbors, or not beside both: so neither
length nor frequency tells them apart.
"""

import bisect
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise
from typing import NamedTuple, Self

import numpy as np

from anyformer.compare.tasks.choices import Choice, ChoiceTask, Item, Span, differences, encode
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
            left = _CHARACTERS
            for text in texts:
                inside = words(text[:left])
                counted.update(word.text for word in inside)
                neighbors.update(text[a.begin : b.end] for a, b in pairwise(inside) if b.begin - a.end <= _GAP)
                left -= len(text)
                if left <= 0:
                    break
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


OPTIONS = 4
"""Words that a cloze chooses from."""
RATIO = 1.5
"""Largest ratio of the occurrences of two words of a cloze."""
_FEWEST, _MOST_PAIRS, _MOST_BLANKS = 24, 160, 200
"""Items: fewer say nothing, more take long."""
_TRIES = 40
"""Other frames that a frame is paired with before it is given up."""
_NEAREST = 60
"""Words of about the same frequency that are tried."""

_ByCount = list[tuple[int, str]]
"""The frequent words of a corpus and their counts, sorted."""


def _task(name: str, title: str, items: Sequence[Item], *, options: int, whole: bool) -> ChoiceTask:
    """The task of these items, which is left out if they are too few."""
    reason = None
    if len(items) < _FEWEST:
        reason = f"The held-out text is too short for {title}: it gives {len(items)} of {_FEWEST}."
    return ChoiceTask(name=name, options=options, whole=whole, items=() if reason else tuple(items), reason=reason)


def make_minimal_pairs(
    passages: Sequence[str],
    held_out_texts: Sequence[str],
    statistics: WordStatistics,
    tokenizer: Tokenizer,
    seed: int,
) -> ChoiceTask:
    """Make pairs, about as many of each kind."""
    rng = np.random.default_rng(seed)
    kinds = {
        "word_order": [pair for passage in passages for pair in _swapped(passage, statistics, rng)],
        "agreement": _agreement(held_out_texts, statistics, rng),
    }
    made = {kind: [item for pair in pairs for item in _items(kind, pair, tokenizer)] for kind, pairs in kinds.items()}
    items = list[Item]()
    for done, kind in enumerate(sorted(made, key=lambda kind: len(made[kind]))):
        items += made[kind][: (_MOST_PAIRS - len(items)) // (len(made) - done)]
    return _task("minimal_pairs", "minimal pairs", items, options=2, whole=True)


def _items(kind: str, pair: tuple[str, str], tokenizer: Tokenizer) -> Iterator[Item]:
    """The item of two texts, if they have the same tokens in another order, the first of them in common."""
    right, wrong = both = [encode(text, tokenizer) for text in pair]
    if right != wrong and right[:1] == wrong[:1] and sorted(right) == sorted(wrong):
        spans = differences(both)
        yield Item(kind, pair, (Choice(right, spans), Choice(wrong, spans)))


def _swapped(passage: str, statistics: WordStatistics, rng: np.random.Generator) -> Iterator[tuple[str, str]]:
    """A passage, and the same with two neighbors swapped, if there are such."""
    inside = words(passage)
    for index in later_indices(inside, rng):
        left, right = inside[index : index + 2]
        gap = passage[left.end : right.begin]
        around = [word.text for word in inside[index - 1 : index + 3]]
        if len(set(around)) == len(around) and len(gap) == 1 and not statistics.has(right.text, gap, left.text):
            yield passage, f"{passage[: left.begin]}{right.text}{gap}{left.text}{passage[right.end :]}"
            return


class _Frame(NamedTuple):
    """Three words that follow one another, and what is between them."""

    left: str
    gap: str
    word: str
    next_gap: str
    right: str

    def around(self, word: str) -> str:
        """Its text with another word in the middle."""
        return f"{self.left}{self.gap}{word}{self.next_gap}{self.right}"

    def refuses(self, word: str, statistics: WordStatistics) -> bool:
        """Whether a word follows and precedes its neighbors nowhere, although all of them are frequent."""
        if statistics.has(self.left, self.gap, word) or statistics.has(word, self.next_gap, self.right):
            return False
        return statistics.expected(self.left, word) + statistics.expected(word, self.right) >= 1


def _agreement(texts: Sequence[str], statistics: WordStatistics, rng: np.random.Generator) -> list[tuple[str, str]]:
    frames = list(dict.fromkeys(frame for text in texts for frame in _frames(text, statistics)))
    rng.shuffle(frames)
    made, used = list[tuple[str, str]](), set[str]()
    for frame in frames:
        if len(made) == _MOST_PAIRS:
            break
        for index in rng.integers(len(frames), size=_TRIES):
            other = frames[index]
            if {frame.word, other.word} & used:
                continue
            if frame.refuses(other.word, statistics) and other.refuses(frame.word, statistics):
                right = f"{frame.around(frame.word)}\n{other.around(other.word)}"
                made.append((right, f"{frame.around(other.word)}\n{other.around(frame.word)}"))
                used |= {frame.word, other.word}
                break
    return made


def _frames(text: str, statistics: WordStatistics) -> list[_Frame]:
    inside = words(text)
    return [
        _Frame(left.text, gap, word.text, next_gap, right.text)
        for left, word, right in zip(inside, inside[1:], inside[2:], strict=False)
        if len(gap := text[left.end : word.begin]) == 1
        and len(next_gap := text[word.end : right.begin]) == 1
        and "\n" not in gap + next_gap
        and all(statistics.is_frequent(each.text) for each in (left, word, right))
    ]


def make_cloze(passages: Sequence[str], statistics: WordStatistics, tokenizer: Tokenizer, seed: int) -> ChoiceTask:
    """Remove a word from each passage that has one with enough others like it."""
    rng = np.random.default_rng(seed)
    by_count = sorted((count, word) for word, count in statistics.counts.items() if count >= FREQUENT)
    blanks = (item for passage in passages for item in _blank(passage, statistics, by_count, tokenizer, rng))
    return _task("cloze", "a cloze test", [*islice(blanks, _MOST_BLANKS)], options=OPTIONS, whole=False)


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
