"""The config of a low-rank adapter."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import Literal, TypeVar

from anyformer.adapters import patterns
from anyformer.errors import UserError

T = TypeVar("T")
Bias = Literal["none", "all", "lora_only"]


@dataclass(frozen=True)
class LoraConfig:
    """LoRA, DoRA and rsLoRA; names of modules are those of Hugging Face's class, as in PEFT.

    Raises:
        UserError: a rank below 1, numbers that make no adapter, or patterns that are none (see `patterns.Pattern`).
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
    """Other ranks, by regular expressions for the ends of names, see `patterns.Pattern`."""
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
        patterns.check([*self.rank_pattern, *self.alpha_pattern])

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
    return next((value for key, value in values.items() if patterns.compiled(key).matches(module)), default)


def matches(names: str | Sequence[str], module: str) -> bool:
    """Whether one of the names is a dotted name or its end; one string is a regular expression for all of it."""
    if isinstance(names, str):
        return re.fullmatch(names, module) is not None
    return any(module == name or module.endswith(f".{name}") for name in names)
