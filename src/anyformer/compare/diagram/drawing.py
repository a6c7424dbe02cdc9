"""A drawing: one model or several side by side, a legend, and the differences that are no part of the picture."""

from collections.abc import Sequence
from xml.etree.ElementTree import Element

from anyformer.compare.diagram import stack, svg
from anyformer.compare.diagram.description import description, kind, title
from anyformer.compare.diagram.facts import STACKS
from anyformer.compare.diagram.panel import Difference, Panel, lit, panels, undrawn
from anyformer.compare.diagram.stack import LEFT, STREAM
from anyformer.compare.diagram.style import SIZE, SMALL, TITLE, Style, cost_text, write_fact, write_facts
from anyformer.compare.diagram.text import clean, fit, width
from anyformer.config import ModelConfig
from anyformer.families import PRESETS
from anyformer.runs.report.formatting import count, si

_MARGIN, _GUTTER, _BETWEEN = 20.0, 40.0, 28.0
"""Around a model, between its stacks, and between models."""
_INNER = 2 * stack.WIDTH + _GUTTER
_PANEL = _INNER + 2 * _MARGIN
_DECODER = _MARGIN + stack.WIDTH + _GUTTER
_EDGE = _MARGIN + LEFT
"""Where blocks and texts begin."""
_SPAN = _INNER - 2 * LEFT - 6
"""How wide the head is."""

_TOP = 76.0
_BOTTOM = _TOP + stack.HEIGHT
_HEAD, _HEAD_HEIGHT = _BOTTOM + 16, 54.0
_NUMBERS = _HEAD + _HEAD_HEIGHT + 40
_LEGEND = _NUMBERS + 52
_REST = _LEGEND + 34
_ROW, _COLUMN = 17.0, 320.0
"""The height of a row of the differences below, and the width of a column."""
_HEAD_FACTS = ("width", "tied", "transform", "bias", "scaled", "pooling", "pooler")


def diagram(config: ModelConfig, other: ModelConfig | None = None, *, names: Sequence[str] = ()) -> str:
    """Draw a model, or two and what separates them, as an SVG picture.

    ``Path("blocks.svg").write_text(af.diagram(af.preset("gpt2"), af.preset("llama")), encoding="utf-8")``

    Blocks have the same place in every drawing. Those that a model lacks are dashed, and what differs between two
    models is in color. Parameters and FLOPs of a block are those of all its layers together (see
    `anyformer.analysis.part_costs`), FLOPs being for one token that attends to as many as the (shorter) model was made
    for. The picture has a title and a description for screen readers, and a dark form for dark windows.

    Args:
        config: The model.
        other: A model to compare it with.
        names: What to call them; empty: the preset that they are, or their `model_type`.

    Raises:
        UserError: a model of sizes that can't be counted.
    """
    configs = [config] if other is None else [config, other]
    return draw(panels(list(zip(names or map(_name, configs), configs, strict=True))))


def _name(config: ModelConfig) -> str:
    return next((name for name, preset in PRESETS.items() if preset == config), config.model_type)


def draw(drawn: Sequence[Panel], among: Sequence[Panel] = (), identifier: str = "diagram") -> str:
    """Draw models side by side, as an SVG element that can stand in a page beside others.

    Args:
        drawn: The models.
        among: The models among which differences are lit; empty: those that are drawn, and the differences that are no
            part of the picture are listed below it. A page with a picture for each of several models lights in each
            what is not the same in all.
        identifier: The element's id, with which all of its ids begin: another one for each picture in a page.
    """
    rest, among = ([], among) if among else (undrawn(drawn), drawn)
    wide = len(drawn) * (_PANEL + _BETWEEN) - _BETWEEN
    columns = max(1, int((wide - 2 * _EDGE) // _COLUMN))
    high = _REST + (30 + _ROW * -(-len(rest) // columns) if rest else 0)
    picture = svg.root(identifier, (wide, high), title(drawn), description(drawn, among))
    places = lit(among)
    for number, panel in enumerate(drawn):
        x = number * (_PANEL + _BETWEEN)
        if number:
            svg.path(picture, f"M{x - _BETWEEN / 2:g} 24V{_LEGEND - 8:g}", "rule")
        _model(svg.group(picture, x=x), Style(panel, places))
    others = [panel.name for panel in among if panel not in drawn]
    differs = "not the same in all" if len(among) > 2 else f"differs from {others[0]}" if others else "differs"
    _legend(picture, differs if len(among) > 1 else "")
    _rest(picture, rest, columns)
    return svg.to_text(picture)


def _model(parent: Element, style: Style) -> None:
    panel, room = style.panel, _INNER - 16
    size = next((size for size in (18.0, 15.0) if width(clean(panel.name), size, bold=True) <= room), 12.0)
    svg.text(parent, _EDGE, 34, panel.name, room, size=size, style="bold")
    svg.text(parent, _EDGE, 53, kind(panel), room, size=12, style="soft")
    for name, x in zip(STACKS, (_MARGIN, _DECODER), strict=True):
        stack.draw(parent, style, name, x, _TOP)
    if panel.config.is_encoder_decoder:
        _encoded(parent, style)
    last = STREAM + (_DECODER if style.fact("decoder") else _MARGIN)
    svg.arrow(parent, f"M{last:g} {_BOTTOM - 2:g}V{_HEAD - 5:g}", (last, _HEAD), "down", "stream")
    _head(parent, style)
    end = _HEAD + _HEAD_HEIGHT
    svg.arrow(parent, f"M{last:g} {end:g}V{end + 17:g}", (last, end + 22), "down", "stream")
    write_fact(parent, style, "output", last - 12, end + 17, 250, classes="soft", anchor="end")
    _numbers(parent, panel)


def _encoded(parent: Element, style: Style) -> None:
    """From the encoder's end to where the decoder looks at it."""
    start, x, low = _MARGIN + STREAM, _DECODER - _GUTTER / 2 + 2, _BOTTOM - 1
    high = _TOP + stack.middle("cross-attention")
    up = f"H{x - 8:g}q8 0 8 -8V{high + 8:g}q0 -8 8 -8H{_DECODER + LEFT - 4:g}"
    svg.arrow(parent, f"M{start:g} {low:g}{up}", (_DECODER + LEFT, high), "right")
    upright = svg.group(parent)
    upright.set("transform", f"translate({x - 6:g} {low - 15:g}) rotate(-90)")
    write_fact(upright, style, "encoder.stream", 0, 0, 230, classes="soft")


def _head(parent: Element, style: Style) -> None:
    block = svg.group(parent, style.around("head"), place="head", title=style.tooltip("head"))
    svg.box(block, _EDGE, _HEAD, _SPAN, _HEAD_HEIGHT)
    x, y = _EDGE + 12, _HEAD + 21
    write_fact(block, style, "head", x, y, 300, ghost="head", prefix="head: ", size=TITLE, classes="bold")
    cost = cost_text(style.cost("head"))
    svg.text(block, _EDGE + _SPAN - 12, y, cost, 260, size=SMALL, style="soft", anchor="end")
    write_facts(block, style, "head", _HEAD_FACTS, x, y + 19, _SPAN - 24)


def _numbers(parent: Element, panel: Panel) -> None:
    svg.path(parent, f"M{_EDGE:g} {_NUMBERS - 8:g}h{_SPAN:g}", "rule")
    cache = f"{panel.cache_bytes:,} bytes" if panel.cache_bytes else "none"
    numbers = (
        (count(panel.parameters), "parameters"),
        (si(panel.flops), f"FLOPs per token, at {panel.context:,} tokens"),
        (cache, "keys and values per token, bfloat16"),
    )
    for number, (value, label) in enumerate(numbers):
        x, room = _EDGE + number * _INNER / 3, _INNER / 3 - 8
        svg.text(parent, x, _NUMBERS + 16, value, room, size=16, style="bold")
        svg.text(parent, x, _NUMBERS + 32, label, room, size=SMALL, style="soft")


def _legend(parent: Element, differs: str) -> None:
    svg.path(parent, f"M{_EDGE:g} {_LEGEND - 6:g}h{_SPAN:g}", "rule")
    x, y = _EDGE, _LEGEND + 18
    for style, label in (("", "part of the model"), ("ghost", "absent"), ("lit", fit(differs, 150, SMALL))):
        if label:
            svg.box(svg.group(parent, style), x, y - 10, 20, 12, radius=4)
            svg.text(parent, x + 26, y, label, 150, size=SMALL, style="soft")
            x += width(label, SMALL) + 44
    svg.text(parent, x, y, "parameters and FLOPs are of all layers of a stack", 300, size=SMALL, style="soft")


def _rest(parent: Element, rest: Sequence[Difference], columns: int) -> None:
    if rest:
        svg.text(parent, _EDGE, _REST + 14, "Also different, but no part of the picture", 400, style="bold")
    for number, each in enumerate(rest):
        row, column = divmod(number, columns)
        parts = [(each.field, "soft", ""), (" → ".join(each.values), "lit", "")]
        svg.line(parent, _EDGE + column * _COLUMN, _REST + 33 + row * _ROW, parts, _COLUMN - 14, SIZE)
