"""Examples as token ids."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class LearnedTokens:
    """A text as a decoder reads it.

    Attributes:
        tokens: Its ids, with the special ones.
        learned: For each of them whether it is a target of the loss. It is about the token itself, and not about the
            one before it, whose prediction it is.
        mismatches: Borders of prompts and answers across which the tokenizer would merge characters if it encoded both
            together. The ids are those of the prompt and then those of the answer, as in generation.
    """

    tokens: Sequence[int]
    learned: Sequence[bool]
    mismatches: int = 0

    @property
    def count(self) -> int:
        """The number of learned tokens."""
        return sum(self.learned)


@dataclass(frozen=True, slots=True)
class Cut:
    """Tokens that `truncate` cut off.

    Attributes:
        tokens, learned: Tokens, and how many of them were to be learned.
        lost_end: Whether the last learned token is gone, from which the model learns where an answer ends.
        lost_all: Whether there were learned tokens, and none is left.
    """

    tokens: int = 0
    learned: int = 0
    lost_end: bool = False
    lost_all: bool = False


def truncate(row: LearnedTokens, context: int | None) -> tuple[LearnedTokens, Cut]:
    """Keep the beginning of a row, at most `context` tokens (None: all), and say what was cut off."""
    if context is None or len(row.tokens) <= context:
        return row, Cut()
    kept = LearnedTokens(row.tokens[:context], row.learned[:context], row.mismatches)
    lost = sum(row.learned[context:])
    return kept, Cut(len(row.tokens) - context, lost, lost_end=lost > 0, lost_all=lost > 0 and kept.count == 0)
