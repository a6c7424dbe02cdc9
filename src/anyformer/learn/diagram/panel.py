"""Models that are drawn beside each other: what each is made of and costs, and in what they differ."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, is_dataclass
from typing import Any, cast

from anyformer.analysis import PartCost, cache_bytes_per_token, part_costs
from anyformer.config import ModelConfig, diff
from anyformer.errors import UserError
from anyformer.learn.diagram.facts import Facts, facts, windows
from anyformer.pages.formatting import setting
from anyformer.schema import ConfigError
from anyformer.terminal import shorten

ABSENT = "absent"
_LONGEST = 200
"""Characters of a name or a value."""


@dataclass(frozen=True)
class Panel:
    """One model in a drawing."""

    name: str
    config: ModelConfig
    facts: Facts
    costs: dict[str, PartCost] | None
    """The cost of each part, by its name; None: the config names a block of somebody's own."""
    cache_bytes: int
    """Keys and values of one token, in bfloat16."""
    context: int
    """Tokens that each token attends to, where FLOPs are counted."""

    @property
    def parameters(self) -> int | None:
        """Weights of the whole model."""
        return None if self.costs is None else sum(cost.parameters for cost in self.costs.values())

    @property
    def flops(self) -> int | None:
        """Floating-point operations of a forward pass for one token."""
        return None if self.costs is None else sum(cost.flops for cost in self.costs.values())

    def masks(self, stack: str) -> list[str]:
        """Masks of the first layers of a stack, and of the others: full, causal, band or window."""
        kinds = ("causal", "window") if stack == "decoder" else ("full", "band")
        return [kinds[window is not None] for window in windows(self.config, stack)]


def panels(models: Sequence[tuple[str, ModelConfig]], context: int | None = None) -> list[Panel]:
    """Describe models for one drawing.

    Args:
        models: Their names and configs.
        context: Tokens that each token attends to, where FLOPs are counted; None: as many as the shortest of the
            models was made for.

    Raises:
        UserError: the context is too small, or a model too large to be counted.
    """
    if context is None:
        context = min(config.max_length for _, config in models)
    if context < 1:
        raise UserError(f"context is a number of tokens, at least 1, not {context}.")
    return [_panel(shorten(name, _LONGEST), config, context) for name, config in models]


def _panel(name: str, config: ModelConfig, context: int) -> Panel:
    try:
        costs = {cost.name: cost for cost in part_costs(config, context)}
    except ConfigError:
        costs = None
    return Panel(name, config, facts(config), costs, cache_bytes_per_token(config), context)


def differences(drawn: Sequence[Panel]) -> dict[str, tuple[str, ...]]:
    """Texts of the places at which models differ, in each of them; `ABSENT` where a model has nothing."""
    facts_at = {place: [panel.facts.get(place) for panel in drawn] for panel in drawn for place in panel.facts}
    return {
        place: tuple(fact.text if fact else ABSENT for fact in of_models)
        for place, of_models in facts_at.items()
        if len({fact and fact.text for fact in of_models}) > 1
    }


def undrawn(drawn: Sequence[Panel]) -> dict[str, tuple[str, ...]]:
    """The fields in which models differ, and that none of the places at which they do shows, with their values."""
    places = differences(drawn)
    shown = {
        field for panel in drawn for place, fact in panel.facts.items() if place in places for field in fact.fields
    }
    first, *others = drawn
    differing = dict.fromkeys(field for panel in others for field in diff(first.config, panel.config))
    return {field: tuple(_value(panel.config, field) for panel in drawn) for field in differing if field not in shown}


def _value(config: ModelConfig, field: str) -> str:
    value: Any = config
    for name in field.split("."):
        value = getattr(value, name, None)
    if is_dataclass(value):
        value = asdict(cast("Any", value))
    text = setting(list(cast("tuple[Any, ...]", value)) if isinstance(value, tuple) else value)
    return shorten(text, _LONGEST)
