"""Regular expressions for the names of layers, matched in time linear in the pattern and the name.

Python's `re` goes back and tries again, so a pattern of a stranger's adapter may take forever: ``.?.?.? ... x``. Here
each part of a pattern maps the positions where it may begin to those where it may end, all of them at once (Thompson
1968, Regular Expression Search Algorithm).
"""

import re
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Set
from functools import lru_cache, reduce
from math import inf

from anyformer.errors import UserError, quote

LONGEST = 500
"""Characters of a pattern."""
MOST = 10_000
"""Names that the patterns of an adapter may be: a mixture of experts has an adapter for each of its layers."""
_COST = 10
"""Cost of a part of a pattern, where a name that is written out costs 1, as it is soon compared."""

_Positions = Set[int]
_Step = Callable[[str, _Positions], _Positions]
_QUANTIFIER = r"(?:[*+?]|\{(?:[0-9]+(?:,[0-9]*)?|,[0-9]*)\})\??"
_TOKEN = re.compile(rf"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]|\(\?:|{_QUANTIFIER}|.", re.DOTALL)
_REPEATS = {"*": (0, inf), "+": (1, inf), "?": (0, 1)}


class Pattern:
    r"""A pattern of characters, classes, groups, ``|``, ``*``, ``+``, ``?``, ``{m,n}``, ``^``, ``$`` and ``\b``.

    Attributes:
        cost: 1 for a name that is written out, or else 10 for each of its parts; its time is proportional.

    Raises:
        UserError: it is no regular expression, or needs more: another kind of group, a reference, a repeated group
            with a repetition in it.
    """

    cost: int = 0

    def __init__(self, text: str) -> None:
        if len(text) > LONGEST:
            raise UserError(f"{quote(text)} may take too long: a pattern has at most {LONGEST} characters.")
        self._text, self._tokens = text, deque[str](_TOKEN.findall(text))
        self._name: re.Pattern[str] | None = None
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                re.compile(text)
                self._step, _ = self._alternatives()
                if not re.search(r"[|(*+?{]", text):
                    self._name = re.compile(rf"(.*\.)?{text}$")  # in which there is nothing to try again
                    self.cost = 1
        except (re.error, RecursionError, OverflowError) as error:
            raise UserError(f"{quote(text)} is no regular expression: {error}.") from error

    def matches(self, name: str) -> bool:
        """Whether the pattern matches the whole of a dotted name, or its end after a dot."""
        if self._name is not None:
            return self._name.match(name) is not None
        return len(name) in self._step(name, {0, *(match.end() for match in re.finditer(r"\.", name))})

    def _alternatives(self) -> tuple[_Step, bool]:
        """The step of all that is between two parentheses, and whether there is a repetition in it."""
        choices = [self._sequence()]
        while self._tokens and self._tokens[0] == "|":
            self._tokens.popleft()
            choices.append(self._sequence())
        steps, repeats = zip(*choices, strict=True)
        return (lambda name, starts: {end for step in steps for end in step(name, starts)}), any(repeats)

    def _sequence(self) -> tuple[_Step, bool]:
        steps, plain, repeats = list[_Step](), "", False
        self.cost += _COST
        while self._tokens and self._tokens[0] not in ("|", ")"):
            token = self._tokens.popleft()
            if re.fullmatch(rf"{_QUANTIFIER}|\\[0-9]", token):
                raise UserError(f"{quote(self._text)} has more than a pattern of names may have: write out the names.")
            is_group, inner = token in ("(", "(?:"), False
            if not is_group and self._next_repeats() is None:
                plain += token
                continue
            if plain:
                steps.append(self._one(plain))
                plain = ""
            if is_group:
                step, inner = self._alternatives()
                self._tokens.popleft()
            else:
                step = self._one(token)
            if (count := self._next_repeats()) is not None:
                self._tokens.popleft()
                is_loop = count != (0, 1)
                if is_loop and inner:
                    raise UserError(f"{quote(self._text)} may take too long: write out the names of the layers.")
                self.cost += _COST
                step, inner = _repeated(step, *count), inner or is_loop
            steps.append(step)
            repeats = repeats or inner
        if plain:
            steps.append(self._one(plain))
        return (lambda name, starts: reduce(lambda positions, step: step(name, positions), steps, starts)), repeats

    def _one(self, text: str) -> _Step:
        """A step for characters, and positions between them, which fit in one way."""
        self.cost += _COST
        match = re.compile(text).match
        return lambda name, starts: {fit.end() for start in starts if (fit := match(name, start))}

    def _next_repeats(self) -> tuple[int, float] | None:
        """Bounds of the repetitions that the next token asks for; None: it is no quantifier."""
        if not self._tokens or not re.fullmatch(_QUANTIFIER, self._tokens[0]):
            return None
        if self._tokens[0][0] in _REPEATS:
            return _REPEATS[self._tokens[0][0]]
        least, comma, most = self._tokens[0].rstrip("?").strip("{}").partition(",")
        return int(least or 0), int(most) if most else inf if comma else int(least)


def _repeated(step: _Step, least: int, most: float) -> _Step:
    def repeated(name: str, starts: _Positions) -> _Positions:
        for _ in range(least):
            before, starts = starts, step(name, starts)
            if not starts or starts == before:
                break
        new, reached, count = starts, set(starts), least
        while new and count < most:
            new, count = step(name, new) - reached, count + 1
            reached |= new
        return reached

    return repeated


compiled = lru_cache(maxsize=2 * MOST)(Pattern)
"""A pattern that is made once."""


def check(patterns: Iterable[str]) -> None:
    """Raise UserError for patterns of which one is none, or that are too many."""
    cost = 0
    for pattern in patterns:
        cost += compiled(pattern).cost
        if cost > MOST:
            raise UserError(
                f"The patterns of an adapter are more than {MOST:,} names: write them out, or leave some out."
            )
