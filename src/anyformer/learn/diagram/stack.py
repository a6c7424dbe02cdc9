"""A stack in a drawing: its input above, then its blocks as one card of a pile, with the residual stream at their side.

::

    token embedding ─────────┐
    position, segments ──▶ (+)
    ┌ × 12 ─────────── norm ◀─┤
    │ attention ──────────▶ (+)
    │                  norm ◀─┤       where the norms are after the sums, they are on the stream
    │ feed-forward ───────▶ (+)
    └─────────────────────────┤
                            norm
"""

from collections.abc import Collection
from dataclasses import dataclass
from xml.etree.ElementTree import Element

from anyformer.analysis import PartCost
from anyformer.learn.diagram import svg
from anyformer.learn.diagram.facts import SUBLAYERS, Fact, layers, time
from anyformer.learn.diagram.panel import Panel
from anyformer.learn.diagram.svg import add
from anyformer.pages.formatting import count, si

TITLE, SIZE, SMALL = 13.0, 11.5, 10.0
"""Font sizes in pixels."""


@dataclass(frozen=True)
class Style:
    """A model, as it is drawn among others."""

    panel: Panel
    lit: Collection[str]
    """Places at which it differs from others."""

    def fact(self, place: str) -> Fact | None:
        """The fact at a place."""
        return self.panel.facts.get(place)

    def cost(self, *parts: str) -> str:
        """Parameters and FLOPs of parts together, where they have any."""
        return cost_text(*((self.panel.costs or {}).get(part) for part in parts))

    def of(self, place: str) -> str:
        """The classes of what stands at a place: a ghost where the model lacks it, lit where models differ."""
        return self._classes(place, is_lit=place in self.lit)

    def around(self, place: str) -> str:
        """The classes of a block: it is lit if anything in it is; the norms before and after it are beside it."""
        beside = (f"{place}.before", f"{place}.output", f"{place}.after")
        inside = any(each.startswith(f"{place}.") and each not in beside for each in self.lit)
        return self._classes(place, is_lit=inside or place in self.lit)

    def _classes(self, place: str, *, is_lit: bool) -> str:
        return " ".join([*([] if place in self.panel.facts else ["ghost"]), *(["lit"] if is_lit else [])])

    def tooltip(self, place: str) -> str:
        """All that is said of a block: a long name may be truncated in the picture."""
        inside = [fact.text for each, fact in self.panel.facts.items() if each == place or each.startswith(f"{place}.")]
        return ": ".join([*inside[:1], *filter(None, ["; ".join(inside[1:])])]) or "absent"

    def write(
        self,
        parent: Element,
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
        fact = self.fact(place)
        content = ghost if fact is None else prefix + fact.text
        if content:
            look = f"{classes} {self.of(place)}".strip()
            svg.text(parent, x, y, content, room, size=size, style=look, anchor=anchor, place=place)

    def write_line(self, parent: Element, block: str, names: tuple[str, ...], x: float, y: float, room: float) -> None:
        """Write what is said at several places of a block into one line, see `svg.line`."""
        places = [place for name in names if (place := f"{block}.{name}") in self.panel.facts]
        if places:
            parts = [(self.panel.facts[place].text, self.of(place), place) for place in places]
            svg.line(parent, x, y, parts, room, SIZE)


def cost_text(*costs: PartCost | None) -> str:
    """Parameters and FLOPs of parts together, where they have any."""
    present = [cost for cost in costs if cost is not None]
    parameters, flops = sum(cost.parameters for cost in present), sum(cost.flops for cost in present)
    amounts = ((parameters, f"{count(parameters)} parameters"), (flops, f"{si(flops)} FLOPs"))
    return " · ".join(text for amount, text in amounts if amount)


MASK_SIZE = 35.0
"""Width and height of a mask in pixels."""
_CELLS, _SOURCE, _WINDOW = 7, 5, 3


def sees(kind: str, query: int, key: int) -> bool:
    """Whether a token sees another, by their positions.

    The kind is full, causal, window (causal and near), band (near, on both sides) or cross (all of another text).
    """
    near = abs(query - key) < _WINDOW
    return {"causal": key <= query, "window": key <= query and near, "band": near}.get(kind, True)


def draw_mask(parent: Element, kind: str, x: float, y: float) -> None:
    """Draw a mask into a square."""
    step = MASK_SIZE / _CELLS
    keys = range(_CELLS - _SOURCE, _CELLS) if kind == "cross" else range(_CELLS)
    for style in ("seen", "unseen"):
        corners = [
            f"M{x + key * step:g} {y + query * step:g}h{step - 1:g}v{step - 1:g}h{1 - step:g}z"
            for query in range(_CELLS)
            for key in keys
            if sees(kind, query, key) == (style == "seen")
        ]
        if corners:
            add(parent, "path", {"class": style, "d": "".join(corners)})


WIDTH, HEIGHT = 316.0, 727.0
STREAM = 266.0
"""Where the residual stream runs."""
LEFT, RIGHT = 8.0, 222.0
"""Where blocks begin and end."""

_INPUTS = {"position": "position", "segments": "segments", "ngrams": "n-grams"}
"""Vectors added to the token's, and their names where there are none."""
_INPUT_ROW, _INPUT_TOP, _INPUT_SUM = 23.0, 94.0, 126.5
_PILL, _STRIP = 80.0, 150.0
"""The width of a norm, and of the cells of layers at most."""
_FRAME = 212.0
"""Where the pile of blocks begins."""
_HEIGHTS = {"attention": 137.0, "cross-attention": 122.0, "feed-forward": 106.0}
_Lines = list[tuple[float, tuple[str, ...]]]
_OF_ATTENTION: _Lines = [(35, ("heads",)), (50, ("kv_heads",)), (65, ("mask",)), (82, ("bias", "scale"))]
_LINES: dict[str, _Lines] = {
    "attention": [*_OF_ATTENTION, (97, ("position",)), (112, ("reach", "qk_norm", "sinks", "others"))],
    "cross-attention": [*_OF_ATTENTION, (97, ("qk_norm", "sinks"))],
    "feed-forward": [(35, ("width",)), (50, ("activation", "gated", "bias")), (65, ("router",)), (80, ("others",))],
}
"""The lines of a block: their baselines, and the facts in each."""
_PAD, _BESIDE = 12.0, 36.0
"""Between a block's edge and its text, and between blocks, for the norm before each."""


def middle(name: str) -> float:
    """Pixels from a stack's upper edge to the middle of a block, for what leads to it."""
    return _top(name) + 46


def _top(name: str) -> float:
    before = SUBLAYERS[: SUBLAYERS.index(name)]
    return _FRAME + 35 + sum(_HEIGHTS[each] + _BESIDE for each in before)


def draw(parent: Element, style: Style, stack: str, x: float, y: float) -> None:
    """Draw the encoder or decoder of a model, or the ghost of one, at a left and an upper edge."""
    is_there = style.fact(stack) is not None
    whole = svg.group(parent, "" if is_there else "ghost", x=x, y=y)
    style.write(whole, stack, LEFT, 12, 120, ghost=stack, size=TITLE, classes="bold")
    svg.text(whole, STREAM, 12, "tokens", 60, size=SMALL, style="soft", anchor="middle")
    tokens = f"batch × {time(style.panel.config, stack)}" if is_there else ""
    svg.text(whole, STREAM - 8, 27, tokens, 110, size=SMALL, style="soft", anchor="end")
    svg.arrow(whole, f"M{STREAM:g} 17V31", (STREAM, 36), "down", "stream")
    svg.path(whole, f"M{STREAM:g} 82V{_FRAME:g}", "stream")
    _embedding(whole, style, stack)
    _inputs(whole, style, stack)
    _pile(whole, style, stack)
    svg.path(whole, f"M{STREAM:g} {_FRAME:g}V{HEIGHT:g}", "stream")
    for name in SUBLAYERS:
        _block(whole, style, f"{stack}.{name}", _top(name))
    _norm(whole, style, f"{stack}.final_norm", STREAM, HEIGHT - 34)
    norms = style.cost(f"{stack} norms")
    svg.text(whole, LEFT, HEIGHT - 21, norms and f"norms: {norms}", 190, size=SMALL, style="soft")


def _embedding(parent: Element, style: Style, stack: str) -> None:
    place, x = f"{stack}.embedding", LEFT + _PAD
    block = svg.group(parent, style.around(place), place=place, title=style.tooltip(place))
    svg.box(block, LEFT, 36, WIDTH - 2 * LEFT - 6, 46)
    svg.text(block, x, 54, "token embedding", 150, size=TITLE, style="bold")
    style.write_line(block, place, ("table", "shared", "scaled", "projection"), x, 71, 264)
    if style.fact(place) and not style.fact(f"{place}.shared"):
        config = style.panel.config
        rows = (stack == "encoder" and config.source_vocab_size) or config.vocab_size
        cost = f"{count(rows * (config.embedding.width or config.d_model))} parameters"
        svg.text(block, WIDTH - 26, 54, cost, 120, size=SMALL, style="soft", anchor="end")


def _inputs(parent: Element, style: Style, stack: str) -> None:
    """Draw the vectors added to the token's, and the norm of the sum."""
    ends: list[float] = []
    for row, (name, label) in enumerate(_INPUTS.items()):
        place, y = f"{stack}.{name}", _INPUT_TOP + row * _INPUT_ROW
        block = svg.group(parent, style.of(place), place=place, title=style.tooltip(place))
        svg.box(block, LEFT, y, RIGHT - LEFT, 19, radius=9.5)
        prefix = "position: " if name == "position" else ""
        style.write(block, place, LEFT + _PAD, y + 13.2, RIGHT - LEFT - 2 * _PAD, ghost=label, prefix=prefix)
        if style.fact(place):
            ends.append(y + 9.5)
    if ends:
        bend, y = RIGHT + 14, _INPUT_SUM
        svg.path(parent, "".join(f"M{RIGHT:g} {end:g}H{bend:g}V{y:g}" for end in ends))
        svg.arrow(parent, f"M{bend:g} {y:g}H{STREAM - 14:g}", (STREAM - 9, y), "right")
    _sum(parent, _INPUT_SUM, "" if ends else "ghost")
    cost = style.cost(f"{stack} positions", f"{stack} n-grams")
    svg.text(parent, LEFT, 178, cost and f"added: {cost}", RIGHT - LEFT, size=SMALL, style="soft")
    projection = style.cost(f"{stack} projection")
    if projection:
        svg.text(parent, LEFT, 190, f"projection: {projection}", 240, size=SMALL, style="soft")
    _norm(parent, style, f"{stack}.embedding_norm", STREAM, 165)
    style.write(parent, f"{stack}.stream", STREAM - 10, 201, 230, classes="soft", anchor="end")


def _pile(parent: Element, style: Style, stack: str) -> None:
    """The card of a layer, on those of the others."""
    high = _top(SUBLAYERS[-1]) + _HEIGHTS[SUBLAYERS[-1]] + 13 - _FRAME
    for shift in (8, 4, 0) if layers(style.panel.config, stack) > 1 else (0,):
        svg.box(parent, shift, _FRAME + shift, WIDTH - 8, high, "card" if style.fact(stack) else "card ghost", 10)
    style.write(parent, f"{stack}.layers", LEFT + 10, _FRAME + 22, 116, size=TITLE, classes="bold")
    _kinds(parent, style, stack)


def _kinds(parent: Element, style: Style, stack: str) -> None:
    """Draw a cell for each layer of a stack that has two kinds of them, the first at the left."""
    config = style.panel.config
    kinds = config.others(layers(config, stack))
    if not any(kinds):
        return
    step = _STRIP / len(kinds)
    wide = min(step - 0.6, 5.0) if step > 1.2 else step / 2
    for look in ("seen", "unseen"):
        cells = [
            f"M{LEFT + 10 + number * min(step, 6.0):g} {_FRAME + 27:g}h{wide:g}v5h{-wide:g}z"
            for number, other in enumerate(kinds)
            if (other is not None) == (look == "seen")
        ]
        add(parent, "path", {"class": look, "d": "".join(cells)})


def _block(parent: Element, style: Style, place: str, top: float) -> None:
    """A block with the norm before it, its sum with the stream, and the norm after that."""
    stack, name = place.split(".")
    is_there, high, x = style.fact(place) is not None, _HEIGHTS[name], LEFT + _PAD
    outer = svg.group(parent, "" if is_there else "ghost")
    into, before, out = RIGHT - _PILL / 2, top - 18, top + high - 44
    svg.path(outer, f"M{STREAM:g} {before:g}H{RIGHT:g}")
    if is_there:
        svg.arrow(outer, f"M{into:g} {before + 9:g}V{top - 5:g}", (into, top), "down")
        svg.arrow(outer, f"M{RIGHT:g} {out:g}H{STREAM - 14:g}", (STREAM - 9, out), "right")
        if style.fact(f"{place}.before") is None:  # through the ghost of a norm
            svg.path(outer, f"M{RIGHT:g} {before:g}H{into:g}V{before + 9:g}")
    style.write(outer, f"{place}.output", (RIGHT + STREAM - 9) / 2, out - 5, STREAM - 9 - RIGHT, anchor="middle")
    _norm(outer, style, f"{place}.before", into, before - 9)
    block = svg.group(outer, style.around(place), place=place, title=style.tooltip(place))
    svg.box(block, LEFT, top, RIGHT - LEFT, high)
    svg.text(block, x, top + 18, name, 130, size=TITLE, style="bold")
    if is_there:
        room, beside = RIGHT - LEFT - 2 * _PAD, _masks(block, style, place, top + 10)
        for baseline, names in _LINES[name]:
            style.write_line(block, place, names, x, top + baseline, room - beside * (baseline < MASK_SIZE + 12))
        cost = style.cost(f"{stack} {name}")
        svg.text(block, x, top + high - 9, cost, room, size=SMALL, style="soft")
    _sum(outer, out, "")
    _norm(outer, style, f"{place}.after", STREAM, out + 18)


def _masks(parent: Element, style: Style, place: str, y: float) -> float:
    """Draw the masks of a block, that of later layers at the right. Returns the room that they take."""
    stack, name = place.split(".")
    kinds = {"attention": style.panel.masks(stack), "cross-attention": ["cross"]}.get(name, [])
    holder, step = svg.group(parent, "lit" if f"{place}.mask" in style.lit else ""), MASK_SIZE + 5
    for number, kind in enumerate(reversed(kinds)):
        draw_mask(holder, kind, RIGHT - 11 - MASK_SIZE - number * step, y)
    return step * len(kinds)


def _norm(parent: Element, style: Style, place: str, x: float, y: float) -> None:
    pill = svg.group(parent, style.of(place), place=place, title=style.tooltip(place))
    svg.box(pill, x - _PILL / 2, y, _PILL, 18, radius=9)
    style.write(pill, place, x, y + 12.6, _PILL - 8, anchor="middle")


def _sum(parent: Element, y: float, ghost: str) -> None:
    holder = svg.group(parent, ghost)
    svg.add(holder, "circle", {"class": "sum", "cx": f"{STREAM:g}", "cy": f"{y:g}", "r": "9"})
    svg.path(holder, f"M{STREAM - 4.5:g} {y:g}h9M{STREAM:g} {y - 4.5:g}v9", "stream")
