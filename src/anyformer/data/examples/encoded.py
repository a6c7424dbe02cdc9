"""Examples as token ids."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class LearnedTokens:
    """A text as a decoder reads it.

    Attributes:
        tokens: Its ids, with the special ones.
        learned: For each of them whether it is a target of the loss. It is about the token itself, and not about the
            one before it, whose prediction it is.
    """

    tokens: Sequence[int]
    learned: Sequence[bool]
