"""The masked objective: hidden tokens, from both sides."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from anyformer.data.batch import IGNORED, Batch, Bool, Int64

_T = TypeVar("_T", np.int64, np.bool_)


@dataclass(frozen=True, slots=True, eq=False)
class Joints:
    """How tokens make up words: a token goes on with the word of the one before where both sides join.

    Attributes:
        left: [vocab] whether a token, by its beginning, can go on with a word.
        right: [vocab] whether a token, by its end, can be gone on with.
    """

    left: Bool
    right: Bool

    def first(self, windows: Int64) -> Bool:
        """Mark the tokens of [batch, time] with which a word begins. A window's edge cuts words."""
        begins = np.ones_like(windows, dtype=np.bool_)
        begins[:, 1:] = ~(self.left[windows[:, 1:]] & self.right[windows[:, :-1]])
        return begins


@dataclass(frozen=True, slots=True)
class Masked:
    """Predict hidden tokens from both sides, as BERT does (Devlin et al. 2018, section 3.1 and appendix A.1).

    Of a window's tokens that are text, 15% are to be predicted (rounded, at least one); of those 80% are
    replaced by the mask token, 10% by a random token, and 10% stay.

    With `words`, whole words are chosen until 15% of the tokens are, those left out that would be too much (whole
    word masking, in the README and the create_pretraining_data.py of BERT's code; Cui et al. 2021). What becomes of
    each token of a word is still drawn for it alone. Where every word is too much, the shortest is chosen.

    Attributes:
        mask_id: the mask token.
        ordinary: [n] the ids that a random replacement is drawn from: all that are not special.
        special: [m] the ids that are never to be predicted.
        before, after: what stands around each window, such as [CLS] and [SEP]; None for nothing.
        share: which share of the tokens is to be predicted.
        words: which tokens make up a word, to choose whole words; None to choose single tokens.
    """

    mask_id: int
    ordinary: Int64
    special: Int64
    before: int | None = None
    after: int | None = None
    share: float = 0.15
    words: Joints | None = None

    @property
    def overlap(self) -> int:
        """Windows stand side by side."""
        return 0

    def stride(self, context: int) -> int:
        """The context less what stands around a window."""
        return context - (self.before is not None) - (self.after is not None)

    def __call__(
        self,
        windows: Int64,
        owned: Bool,
        present: Bool | None,
        rng: np.random.Generator,
        begins: Bool | None = None,
    ) -> Batch:
        """Make a batch of [batch, context]."""
        del begins
        candidates = owned & ~np.isin(windows, self.special)
        count = candidates.sum(axis=1)
        wanted = np.where(count > 0, np.maximum(1, np.rint(self.share * count)), 0).astype(np.int64)
        if self.words is None:
            draw = np.where(candidates, rng.random(windows.shape), np.inf)
            rank = draw.argsort(axis=1).argsort(axis=1)
            chosen = rank < wanted[:, None]
        else:
            # A word of which a part must not be predicted is predicted as far as it may be.
            number = (self.words.first(windows) | np.isin(windows, self.special)).cumsum(axis=1) - 1
            rows = zip(number, candidates, wanted.tolist(), strict=True)
            chosen = np.stack([_whole_words(*row, rng) for row in rows])

        fate = rng.random(windows.shape)
        random = rng.choice(self.ordinary, windows.shape)
        changed = np.where(fate < 0.8, self.mask_id, np.where(fate < 0.9, random, windows))
        tokens = np.where(chosen, changed, windows)
        targets = np.where(chosen, windows, IGNORED)
        mask = None if present is None else self._surround(present, True, True)
        return Batch(self._surround(tokens, self.before, self.after), self._surround(targets, IGNORED, IGNORED), mask)

    def _surround(self, rows: npt.NDArray[_T], before: int | None, after: int | None) -> npt.NDArray[_T]:
        parts = [rows]
        if self.before is not None:
            parts.insert(0, np.full((len(rows), 1), before, dtype=rows.dtype))
        if self.after is not None:
            parts.append(np.full((len(rows), 1), after, dtype=rows.dtype))
        return np.concatenate(parts, axis=1)


def _whole_words(number: Int64, candidates: Bool, wanted: int, rng: np.random.Generator) -> Bool:
    """Choose words of a row at random until `wanted` tokens are chosen, leaving out those that don't fit any more.

    Args:
        number: [time] the word that each token belongs to, from 0.
        candidates: [time] which tokens may be chosen.
        wanted: how many to choose; fewer where nothing fits exactly.
        rng: the source of randomness.
    """
    sizes = np.bincount(number[candidates], minlength=int(number[-1]) + 1)
    order = rng.permutation(np.flatnonzero(sizes))
    chosen: list[int] = []
    room = wanted
    for word, size in zip(order.tolist(), sizes[order].tolist(), strict=True):
        if room == 0:
            break
        if size <= room:
            chosen.append(word)
            room -= size
    if order.size and not chosen:
        chosen.append(int(order[sizes[order].argmin()]))
    return candidates & np.isin(number, chosen)
