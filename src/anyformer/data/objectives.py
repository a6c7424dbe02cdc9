"""Objectives: what a window of tokens is trained to predict.

An objective turns windows into a Batch. It is a pure function: its randomness comes only from the generator
it is given. A further objective is one class and one entry in OBJECTIVES.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from anyformer.errors import UserError, nearest

IGNORED = -100
"""A target that counts for nothing in the loss."""

Int64 = npt.NDArray[np.int64]
Bool = npt.NDArray[np.bool_]
_T = TypeVar("_T", np.int64, np.bool_)


@dataclass(frozen=True, slots=True)
class Batch:
    """What a model is trained on in one step.

    Attributes:
        tokens: [batch, time] ids, for an encoder-decoder those that the decoder reads.
        targets: [batch, time] ids to predict, IGNORED where there is nothing to predict.
        mask: [batch, time], True for a real token; None where all are.
        segments: [batch, time] segment ids; None for all zero.
        source: [batch, source] ids that an encoder reads; None for a single stack.
        source_mask: [batch, source], True for a real token; None where all are.
    """

    tokens: Int64
    targets: Int64
    mask: Bool | None = None
    segments: Int64 | None = None
    source: Int64 | None = None
    source_mask: Bool | None = None

    @property
    def predicted(self) -> int:
        """Number of targets that count."""
        return int((self.targets != IGNORED).sum())


class Objective(Protocol):
    """Turns windows of the token stream into batches."""

    @property
    def overlap(self) -> int:
        """By how many tokens a window reaches beyond those that it is responsible for."""
        ...

    def stride(self, context: int) -> int:
        """How many new tokens a window of a model's context holds."""
        ...

    def __call__(self, windows: Int64, owned: Bool, present: Bool | None, rng: np.random.Generator) -> Batch:
        """Make a batch.

        Args:
            windows: [batch, stride + overlap] tokens.
            owned: [batch, stride + overlap], True for the tokens that this window has to predict. Each token
                of the stream is owned once an epoch.
            present: [batch, stride + overlap], True for a real token; None where all are.
            rng: the only source of randomness.
        """
        ...


class HasSpecialTokens(Protocol):
    """What objectives need of a tokenizer."""

    @property
    def vocab_size(self) -> int:
        """Number of tokens."""
        ...

    @property
    def special_ids(self) -> frozenset[int]:
        """Ids that are not text."""
        ...

    cls: int | None
    sep: int | None
    mask: int | None


@dataclass(frozen=True, slots=True)
class Causal:
    """Predict each token from those before it: targets are the tokens shifted by one."""

    @property
    def overlap(self) -> int:
        """The first token of a window is only read, the last only predicted."""
        return 1

    def stride(self, context: int) -> int:
        """All of the context."""
        return context

    def __call__(self, windows: Int64, owned: Bool, present: Bool | None, rng: np.random.Generator) -> Batch:
        """Make a batch of [batch, context]."""
        del rng
        targets = np.where(owned[:, 1:], windows[:, 1:], IGNORED)
        mask = None if present is None else present[:, :-1]
        return Batch(np.ascontiguousarray(windows[:, :-1]), targets, mask)


@dataclass(frozen=True, slots=True)
class Masked:
    """Predict hidden tokens from both sides, as BERT does (Devlin et al. 2018, section 3.1 and appendix A.1).

    Of a window's tokens that are text, 15% are to be predicted (rounded, at least one); of those 80% are
    replaced by the mask token, 10% by a random token, and 10% stay.

    Attributes:
        mask_id: the mask token.
        ordinary: [n] the ids that a random replacement is drawn from: all that are not special.
        special: [m] the ids that are never to be predicted.
        before, after: what stands around each window, such as [CLS] and [SEP]; None for nothing.
        share: which share of the tokens is to be predicted.
    """

    mask_id: int
    ordinary: Int64
    special: Int64
    before: int | None = None
    after: int | None = None
    share: float = 0.15

    @property
    def overlap(self) -> int:
        """Windows stand side by side."""
        return 0

    def stride(self, context: int) -> int:
        """The context less what stands around a window."""
        return context - (self.before is not None) - (self.after is not None)

    def __call__(self, windows: Int64, owned: Bool, present: Bool | None, rng: np.random.Generator) -> Batch:
        """Make a batch of [batch, context]."""
        candidates = owned & ~np.isin(windows, self.special)
        count = candidates.sum(axis=1)
        wanted = np.where(count > 0, np.maximum(1, np.rint(self.share * count)), 0)
        draw = np.where(candidates, rng.random(windows.shape), np.inf)
        rank = draw.argsort(axis=1).argsort(axis=1)
        chosen = rank < wanted[:, None]

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


def causal(tokenizer: HasSpecialTokens) -> Causal:
    """The causal objective; it needs nothing of the tokenizer."""
    del tokenizer
    return Causal()


def masked(tokenizer: HasSpecialTokens) -> Masked:
    """The masked objective for a tokenizer. Raises UserError when it has no mask token."""
    if tokenizer.mask is None:
        raise UserError(
            "Masked training needs a tokenizer with a mask token, and this one has none: train one with "
            "--tokenizer wordpiece:N, or choose a decoder-only model."
        )
    special = np.array(sorted(tokenizer.special_ids), dtype=np.int64)
    ordinary = np.setdiff1d(np.arange(tokenizer.vocab_size, dtype=np.int64), special)
    if not ordinary.size:
        raise UserError("Masked training needs a tokenizer with ordinary tokens, and all of this one's are special.")
    return Masked(tokenizer.mask, ordinary, special, tokenizer.cls, tokenizer.sep)


OBJECTIVES: dict[str, Callable[[HasSpecialTokens], Objective]] = {"causal": causal, "masked": masked}


def objective(name: str, tokenizer: HasSpecialTokens) -> Objective:
    """Return the objective of a name for a tokenizer; raises UserError when there is no such objective."""
    if name not in OBJECTIVES:
        raise UserError(f"There is no objective called {name!r}: {nearest(name, OBJECTIVES)}")
    return OBJECTIVES[name](tokenizer)
