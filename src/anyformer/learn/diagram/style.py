"""How what stands at a place looks: as a ghost where the model lacks it, in color where models differ."""

from dataclasses import dataclass
from xml.etree.ElementTree import Element

from anyformer.analysis import PartCost
from anyformer.learn.diagram import svg
from anyformer.learn.diagram.facts import Fact
from anyformer.learn.diagram.panel import Panel
from anyformer.pages.formatting import count, si

TITLE, SIZE, SMALL = 13.0, 11.5, 10.0
"""Font sizes in pixels."""


@dataclass(frozen=True)
class Style:
    """A model, as it is drawn among others."""

    panel: Panel
    lit: frozenset[str]
    """Places at which it differs from others."""

    def fact(self, place: str) -> Fact | None:
        """The fact at a place."""
        return self.panel.facts.get(place)

    def cost(self, part: str) -> PartCost | None:
        """The cost of a part."""
        return (self.panel.costs or {}).get(part)

    def of(self, place: str) -> str:
        """The classes of what stands at a place."""
        return f"{'' if place in self.panel.facts else 'ghost'} {'lit' if place in self.lit else ''}".strip()

    def around(self, place: str) -> str:
        """The classes of a block: it is lit if anything in it is; the norms before and after it are beside it."""
        beside = (f"{place}.before", f"{place}.after")
        inside = any(each.startswith(f"{place}.") and each not in beside for each in self.lit)
        return f"{'' if place in self.panel.facts else 'ghost'} {'lit' if inside or place in self.lit else ''}".strip()

    def tooltip(self, place: str) -> str:
        """All that is said of a block: a long name may be cut in the picture."""
        inside = [fact.text for each, fact in self.panel.facts.items() if each == place or each.startswith(f"{place}.")]
        return ": ".join([*inside[:1], *filter(None, ["; ".join(inside[1:])])]) or "absent"


def cost_text(*costs: PartCost | None) -> str:
    """Parameters and FLOPs of parts together, where they have any."""
    known = [cost for cost in costs if cost is not None]
    parameters, flops = sum(cost.parameters for cost in known), sum(cost.flops for cost in known)
    amounts = ((parameters, f"{count(parameters)} parameters"), (flops, f"{si(flops)} FLOPs"))
    return " · ".join(text for amount, text in amounts if amount)


def write_fact(
    parent: Element,
    style: Style,
    place: str,
    x: float,
    y: float,
    room: float,
    *,
    ghost: str = "",
    prefix: str = "",
    size: float = SMALL,
    classes: str = "",
    anchor: str = "start",
) -> None:
    """Write what is said at a place, see `svg.text`.

    Args:
        ghost: What to write where nothing is said.
        prefix: What to write before it.
        classes: More classes of the text.
    """
    fact = style.fact(place)
    content = ghost if fact is None else prefix + fact.text
    if content:
        look = f"{classes} {style.of(place)}".strip()
        svg.text(parent, x, y, content, room, size=size, style=look, anchor=anchor, place=place)


def write_facts(
    parent: Element, style: Style, block: str, names: tuple[str, ...], x: float, y: float, room: float
) -> None:
    """Write what is said at several places of a block into one line, see `svg.line`."""
    places = [place for name in names if (place := f"{block}.{name}") in style.panel.facts]
    if places:
        parts = [(style.panel.facts[place].text, style.of(place), place) for place in places]
        svg.line(parent, x, y, parts, room, SIZE)
