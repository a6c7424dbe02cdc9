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

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np

from anyformer.compare.tasks.choices import Choice, Objective, TaskResult, differences, encode, log_scores
from anyformer.compare.tasks.words import WordStatistics, later_places, words
from anyformer.model import Transformer
from anyformer.tokenizer import Tokenizer

_FEWEST, _MOST = 24, 160
"""Pairs: fewer say nothing, more take long."""
_TRIES = 40
"""Other frames that a frame is paired with before it is given up."""
_TIE = 1e-4
"""Nats below which a difference is rounding: the tokens are the same, and their order wasn't seen."""

_Rng = np.random.Generator


class MinimalPair(NamedTuple):
    """Two texts with the same tokens.

    Attributes:
        kind: How the second was made.
        right, wrong: Their texts.
    """

    kind: str
    right: str
    wrong: str


@dataclass(frozen=True, slots=True)
class MinimalPairs:
    """The task.

    Attributes:
        pairs: Its items.
        reason: Why it is left out; None: it isn't.
    """

    name: ClassVar[str] = "minimal_pairs"
    pairs: tuple[MinimalPair, ...]
    reason: str | None = None

    @classmethod
    def make(
        cls,
        passages: Sequence[str],
        held_out_texts: Sequence[str],
        known: WordStatistics,
        tokenizer: Tokenizer,
        seed: int,
    ) -> MinimalPairs:
        """Make pairs, about as many of each kind."""
        rng = np.random.default_rng(seed)
        kinds = {
            "word_order": [_swapped(passage, known, rng) for passage in passages],
            "agreement": _agreement(held_out_texts, known, rng),
        }
        made = {
            kind: [MinimalPair(kind, *found) for found in texts if found and is_minimal(*found, tokenizer)]
            for kind, texts in kinds.items()
        }
        pairs = _shared_out(made, _MOST)
        if len(pairs) < _FEWEST:
            return cls((), f"The held-out text is too short for minimal pairs: it gives {len(pairs)} of {_FEWEST}.")
        return cls(tuple(pairs))

    def run(self, model: Transformer, tokenizer: Tokenizer, objective: Objective | None) -> TaskResult:
        """Score a model. Raises UserError as `log_scores`."""
        scores = list[float]()
        if self.pairs:
            choices = list[Choice]()
            for pair in self.pairs:
                both = encode(pair.right, tokenizer), encode(pair.wrong, tokenizer)
                choices += [Choice(ids, differences(both)) for ids in both]
            found = log_scores(model, tokenizer, choices, objective, whole=True)
            scores = [_score(right - wrong) for right, wrong in zip(found[::2], found[1::2], strict=True)]
        by_kind = defaultdict[str, list[float]](list)
        for pair, score in zip(self.pairs, scores, strict=True):
            by_kind[pair.kind].append(score)
        parts = {kind: sum(own) / len(own) for kind, own in by_kind.items()}
        return TaskResult(
            name=self.name, measure="accuracy", chance=0.5, items=tuple(scores), parts=parts, reason=self.reason
        )


def is_minimal(right: str, wrong: str, tokenizer: Tokenizer) -> bool:
    """Whether two texts have the same tokens in another order, the first of them in common."""
    a, b = encode(right, tokenizer), encode(wrong, tokenizer)
    return a != b and a[:1] == b[:1] and sorted(a) == sorted(b)


def _score(difference: float) -> float:
    return 0.5 if abs(difference) < _TIE else float(difference > 0)


def _shared_out(made: dict[str, list[MinimalPair]], most: int) -> list[MinimalPair]:
    """Up to `most` pairs, balanced across kinds."""
    taken = list[MinimalPair]()
    for left, kind in enumerate(sorted(made, key=lambda kind: len(made[kind]))):
        taken += made[kind][: (most - len(taken)) // (len(made) - left)]
    return taken


def _swapped(passage: str, known: WordStatistics, rng: _Rng) -> tuple[str, str] | None:
    found = words(passage)
    for place in later_places(found, rng):
        left, right = found[place : place + 2]
        gap = passage[left.end : right.begin]
        around = [word.text for word in found[place - 1 : place + 3]]
        if len(set(around)) == len(around) and len(gap) == 1 and not known.knows(right.text, gap, left.text):
            return passage, f"{passage[: left.begin]}{right.text}{gap}{left.text}{passage[right.end :]}"
    return None


class _Frame(NamedTuple):
    """Three words that follow one another, and what is between them."""

    left: str
    gap: str
    word: str
    next_gap: str
    right: str

    def of(self, word: str) -> str:
        """Its text with another word in the middle."""
        return f"{self.left}{self.gap}{word}{self.next_gap}{self.right}"

    def refuses(self, word: str, known: WordStatistics) -> bool:
        """Whether a word follows and precedes its neighbors nowhere, although all of them are frequent."""
        if known.knows(self.left, self.gap, word) or known.knows(word, self.next_gap, self.right):
            return False
        return known.expected(self.left, word) + known.expected(word, self.right) >= 1


def _agreement(texts: Sequence[str], known: WordStatistics, rng: _Rng) -> list[tuple[str, str]]:
    frames = list(dict.fromkeys(frame for text in texts for frame in _frames(text, known)))
    rng.shuffle(frames)
    made, used = list[tuple[str, str]](), set[str]()
    for frame in frames:
        if len(made) == _MOST:
            break
        for index in rng.integers(len(frames), size=_TRIES):
            other = frames[index]
            if {frame.word, other.word} & used:
                continue
            if frame.refuses(other.word, known) and other.refuses(frame.word, known):
                right = f"{frame.of(frame.word)}\n{other.of(other.word)}"
                made.append((right, f"{frame.of(other.word)}\n{other.of(frame.word)}"))
                used |= {frame.word, other.word}
                break
    return made


def _frames(text: str, known: WordStatistics) -> list[_Frame]:
    found = words(text)
    return [
        _Frame(left.text, gap, word.text, next_gap, right.text)
        for left, word, right in zip(found, found[1:], found[2:], strict=False)
        if len(gap := text[left.end : word.begin]) == 1
        and len(next_gap := text[word.end : right.begin]) == 1
        and "\n" not in gap + next_gap
        and all(known.is_frequent(each.text) for each in (left, word, right))
    ]
