"""The config of a low-rank adapter, and its patterns: regular expressions for the names of layers.

They are matched in time linear in the pattern and the name.

Python's `re` goes back and tries again, so a pattern of a stranger's adapter may take forever: ``.?.?.? ... x``. Here
each part of a pattern maps the positions where it may begin to those where it may end, all of them at once (Thompson
1968, Regular Expression Search Algorithm).
"""

import math
import re
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from functools import lru_cache, reduce
from itertools import accumulate
from math import inf
from typing import Literal, TypeVar

from anyformer.errors import UserError, quote

T = TypeVar("T")
Bias = Literal["none", "all", "lora_only"]


@dataclass(frozen=True)
class LoraConfig:
    """LoRA, DoRA and rsLoRA; names of modules are those of Hugging Face's class, as in PEFT.

    Raises:
        UserError: a rank below 1, numbers that make no adapter, or patterns that are none (see `Pattern`).
    """

    rank: int = 16
    """Rows of A and columns of B."""
    alpha: float | None = None
    """The adapter counts alpha / rank times; None: twice the rank."""
    dropout: float = 0.0
    """Dropout on the input of A in training."""
    target_modules: str | Sequence[str] = "all-linear"
    """Names, or the ends of dotted names, of the layers that get an adapter; a string is a regular expression for
    whole names, or "all-linear": every linear layer but the output layer."""
    target_parameters: Sequence[str] = ()
    """Names, or the ends of dotted names, of parameters that get an adapter: the matrices of experts,
    ``experts.gate_up_proj`` and ``experts.down_proj``, and routers (PEFT 0.17)."""
    exclude_modules: str | Sequence[str] = ()
    """Modules among these that get none."""
    layers_to_transform: Sequence[int] = ()
    """Numbers of the layers that get adapters; empty: all."""
    layers_pattern: Sequence[str] = ()
    """Names before those numbers, such as "layers"; empty: any."""
    rank_pattern: Mapping[str, int] = field(default_factory=dict[str, int])
    """Other ranks, by regular expressions for the ends of names, see `Pattern`."""
    alpha_pattern: Mapping[str, float] = field(default_factory=dict[str, float])
    """Other alphas."""
    use_rslora: bool = False
    """Divide alpha by the square root of the rank."""
    use_dora: bool = False
    """Learn the length of each row of a weight as well."""
    bias: Bias = "none"
    """The biases that are trained: of all layers, or of those with an adapter."""
    modules_to_save: Sequence[str] = ()
    """Modules that are trained whole and saved with the adapter, such as a classifier."""

    def __post_init__(self) -> None:
        for rank in (self.rank, *self.rank_pattern.values()):
            if rank < 1:
                raise UserError(f"The rank of an adapter is a whole number, at least 1, not {rank}.")
        for alpha in (self.alpha or 0.0, *self.alpha_pattern.values()):
            if not math.isfinite(alpha):
                raise UserError(f"The alpha of an adapter is a finite number, not {alpha}.")
        if not 0 <= self.dropout < 1:
            raise UserError(f"The dropout of an adapter is at least 0 and below 1, not {self.dropout}.")
        if self.target_parameters and (self.dropout or self.use_dora):
            what = "DoRA" if self.use_dora else "dropout"
            raise UserError(f"target_parameters: an adapter of experts or routers has no {what}, as in PEFT.")
        check_patterns([*self.rank_pattern, *self.alpha_pattern])

    def weighted(self, weight: float) -> "LoraConfig":
        """The config of an adapter that counts so many times."""
        pattern = {name: weight * alpha for name, alpha in self.alpha_pattern.items()}
        return replace(self, alpha=weight * self.alpha_of(""), alpha_pattern=pattern)

    @property
    def is_low_rank_only(self) -> bool:
        """Whether no other weights are trained beside the adapter's."""
        return self.bias == "none" and not self.modules_to_save

    def rank_of(self, module: str) -> int:
        """The rank of the adapter of a module, by its dotted name."""
        return _by_pattern(self.rank_pattern, module, self.rank)

    def alpha_of(self, module: str) -> float:
        """The alpha of the adapter of a module."""
        return _by_pattern(self.alpha_pattern, module, 2.0 * self.rank if self.alpha is None else self.alpha)

    def scale_of(self, module: str, rank: int) -> float:
        """Factor on the output of an adapter of this rank."""
        return self.alpha_of(module) / (math.sqrt(rank) if self.use_rslora else rank)

    def selects(self, module: str) -> bool:
        """Whether a linear layer gets an adapter, by its dotted name."""
        if matches(self.exclude_modules, module) or self.saves(module):
            return False
        if self.target_modules == "all-linear":
            return self._selects_layer(module)
        # A whole name, or a pattern of whole names, says which layer as well.
        is_whole = isinstance(self.target_modules, str) or module in self.target_modules
        return matches(self.target_modules, module) and (is_whole or self._selects_layer(module))

    def selects_parameter(self, name: str) -> bool:
        """Whether a parameter gets an adapter, by its dotted name."""
        return matches(self.target_parameters, name)

    def saves(self, module: str) -> bool:
        """Whether a module is trained whole and saved with the adapter: one of `modules_to_save` ends its name, as in
        PEFT, or that of a module around it."""
        around = accumulate(module.split("."), "{}.{}".format)
        return any(name.endswith(tuple(self.modules_to_save)) for name in around)

    def _selects_layer(self, module: str) -> bool:
        if not self.layers_to_transform:
            return True
        before = self.layers_pattern or [r"[^.]*"]
        # The first number in a name is the layer's; an expert inside it would have another.
        matches = (re.match(rf"(?:^|.*?\.){each}\.(\d+)\.", module) for each in before)
        layer = next((int(match[1]) for match in matches if match), None)
        return layer in self.layers_to_transform


def _by_pattern(values: Mapping[str, T], module: str, default: T) -> T:
    return next((value for key, value in values.items() if _compiled(key).matches(module)), default)


def matches(names: str | Sequence[str], module: str) -> bool:
    """Whether one of the names is a dotted name or its end; one string is a regular expression for all of it."""
    if isinstance(names, str):
        return re.fullmatch(names, module) is not None
    return any(module == name or module.endswith(f".{name}") for name in names)


LONGEST_PATTERN = 500
"""Characters of a pattern."""
MOST_NAMES = 10_000
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
        if len(text) > LONGEST_PATTERN:
            raise UserError(f"{quote(text)} may take too long: a pattern has at most {LONGEST_PATTERN} characters.")
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


_compiled = lru_cache(maxsize=2 * MOST_NAMES)(Pattern)


def check_patterns(patterns: Iterable[str]) -> None:
    """Raise UserError for patterns of which one is none, or that are too many."""
    cost = 0
    for pattern in patterns:
        cost += _compiled(pattern).cost
        if cost > MOST_NAMES:
            raise UserError(
                f"The patterns of an adapter are more than {MOST_NAMES:,} names: write them out, or leave some out."
            )
