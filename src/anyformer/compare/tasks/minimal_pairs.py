"""Minimal pairs: of two texts with the same tokens in another order, is the likelier one right?

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
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from anyformer.compare.tasks.choices import Choice, ChoiceTask, Item, differences, encode
from anyformer.compare.tasks.words import WordStatistics, later_indices, words
from anyformer.tokenizer import Tokenizer

_FEWEST, _MOST = 24, 160
"""Pairs: fewer say nothing, more take long."""
_TRIES = 40
"""Other frames that a frame is paired with before it is given up."""


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
        items += made[kind][: (_MOST - len(items)) // (len(made) - done)]
    reason = None
    if len(items) < _FEWEST:
        reason = f"The held-out text is too short for minimal pairs: it gives {len(items)} of {_FEWEST}."
    return ChoiceTask(name="minimal_pairs", options=2, whole=True, items=() if reason else tuple(items), reason=reason)


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
        if len(made) == _MOST:
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
