"""Drawings of models, from their configs: the same places in every drawing, and in color only what differs.

facts    what a drawing says of models, and at which place; their costs, and where they differ
stack    the blocks of a stack, thumbnails of masks; ghosts of what a model lacks, and color
lesson   pictures of a computation: products of matrices, the residual stream
svg      shapes, and the width of a line of text; picture.css, their style

Here is the whole drawing: a model or several side by side, a legend, the differences that are no part of the picture,
and all of it in words.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from xml.etree.ElementTree import Element

from anyformer.config import ModelConfig
from anyformer.families import PRESETS
from anyformer.learn.diagram import stack, svg
from anyformer.learn.diagram.facts import STACKS
from anyformer.learn.diagram.lesson import Matrix, matrices, stream
from anyformer.learn.diagram.panel import ABSENT, Panel, differences, panels, undrawn
from anyformer.learn.diagram.stack import LEFT, SIZE, SMALL, STREAM, TITLE, Style
from anyformer.learn.diagram.svg import clean, fit, width
from anyformer.pages.formatting import count, si
from anyformer.spec import config_of

__all__ = ["Matrix", "Panel", "diagram", "differences", "draw", "matrices", "panels", "stream", "undrawn"]

_MARGIN, _GUTTER, _BETWEEN = 20.0, 40.0, 28.0
"""Around a model, between its stacks, and between models."""
_EDGE = _MARGIN + LEFT
"""Where blocks and texts begin."""
_TOP = 76.0
_BOTTOM = _TOP + stack.HEIGHT
_HEAD = _BOTTOM + 16
_ROW, _COLUMN = 17.0, 320.0
"""The height of a row of the differences below, and the width of a column."""
_HEAD_FACTS = (("width", "bias", "scaled"), ("tied",), ("transform", "pooling", "pooler"))
"""The facts of the head, by the lines of a narrow one."""
_BROAD = 600.0
"""The width from which the legend is a single line."""


class _Layout:
    """The places in a drawing: a column for each stack that some of its models has."""

    def __init__(self, stacks: tuple[str, ...], models: int) -> None:
        self.stacks = stacks
        self.inner = len(stacks) * (stack.WIDTH + _GUTTER) - _GUTTER
        """The width of the columns of a model."""
        self.panel = self.inner + 2 * _MARGIN
        """The width of a model."""
        self.wide = models * (self.panel + _BETWEEN) - _BETWEEN
        """The width of the drawing."""
        self.span = self.inner - 2 * LEFT - 6
        """The width of the head."""
        self.is_narrow = len(stacks) == 1
        """Whether what stands side by side below two stacks is in lines of its own."""
        self.head_height = 94.0 if self.is_narrow else 54.0
        self.numbers = _HEAD + self.head_height + 40
        """The upper edge of the numbers of the whole model."""
        self.legend = self.numbers + (78 if self.is_narrow else 52)
        """The upper edge of the legend."""
        self.rest = self.legend + (34 if self.wide >= _BROAD else 52)
        """The upper edge of the differences that are no part of the picture."""

    def left(self, name: str) -> float:
        return _MARGIN + self.stacks.index(name) * (stack.WIDTH + _GUTTER)


def diagram(
    config: ModelConfig | str | Path, other: ModelConfig | str | Path | None = None, *, names: Sequence[str] = ()
) -> str:
    """Draw a model, or two and what separates them, as an SVG picture.

    ``Path("blocks.svg").write_text(af.diagram("gpt2", "llama"), encoding="utf-8")``

    There is a column for each stack that a model has, or one of the two. Blocks have the same place in every column:
    those that a model lacks are dashed, and what differs between two models is in color. Parameters and FLOPs of a
    block are those of all its layers together (see `anyformer.analysis.part_costs`), FLOPs being for one token that
    attends to as many as the (shorter) model was made for. The picture has a title and a description for screen
    readers, and a dark form for dark windows; it is as wide as it needs to be, and never wider than its window.

    Args:
        config: The model: its config, or a preset or path; see `anyformer.spec.read_config`.
        other: A model to compare it with.
        names: What to call them; empty: the preset that they are, or their `model_type`.

    Raises:
        UserError: there is no such model, or it has sizes that can't be counted.
    """
    configs = [config_of(each) for each in (config, other) if each is not None]
    return draw(panels(list(zip(names or map(_name, configs), configs, strict=True))))


def _name(config: ModelConfig) -> str:
    return next((name for name, preset in PRESETS.items() if preset == config), config.model_type)


def draw(drawn: Sequence[Panel], among: Sequence[Panel] = (), identifier: str = "diagram") -> str:
    """Draw models side by side, as an SVG element that can stand in a page beside others.

    Args:
        among: The models among which differences are lit; empty: those that are drawn, and the differences that are no
            part of the picture are listed below it. A page with a picture for each of several models lights in each
            what is not the same in all.
        identifier: The element's id, with which all of its ids begin: another one for each picture in a page.
    """
    rest, among = ({}, among) if among else (undrawn(drawn), drawn)
    stacks = tuple(name for name in STACKS if any(name in panel.facts for panel in drawn))
    layout = _Layout(stacks, len(drawn))
    columns = max(1, int((layout.wide - 2 * _EDGE) // _COLUMN))
    high = layout.rest + (30 + _ROW * -(-len(rest) // columns) if rest else 0)
    picture = svg.root(identifier, (layout.wide, high), title(drawn), description(drawn, among))
    places = differences(among)
    for number, panel in enumerate(drawn):
        x = number * (layout.panel + _BETWEEN)
        if number:
            svg.path(picture, f"M{x - _BETWEEN / 2:g} 24V{layout.legend - 8:g}", "rule")
        _model(svg.group(picture, x=x), Style(panel, places), layout)
    others = [panel.name for panel in among if panel not in drawn]
    differs = "not the same in all" if len(among) > 2 else f"differs from {others[0]}" if others else "differs"
    _legend(picture, differs if len(among) > 1 else "", layout)
    _rest(picture, rest, columns, layout.rest)
    return svg.to_text(picture)


def _model(parent: Element, style: Style, layout: _Layout) -> None:
    panel, room = style.panel, layout.panel - _EDGE - 8
    size = next((size for size in (18.0, 15.0) if width(clean(panel.name), size, bold=True) <= room), 12.0)
    svg.text(parent, _EDGE, 34, panel.name, room, size=size, style="bold")
    svg.text(parent, _EDGE, 53, kind(panel), room, size=12, style="soft")
    for name in layout.stacks:
        stack.draw(parent, style, name, layout.left(name), _TOP)
    if panel.config.is_encoder_decoder:
        _encoded(parent, style, layout)
    last = STREAM + layout.left("decoder" if style.fact("decoder") else "encoder")
    svg.arrow(parent, f"M{last:g} {_BOTTOM - 2:g}V{_HEAD - 5:g}", (last, _HEAD), "down", "stream")
    _head(parent, style, layout)
    end = _HEAD + layout.head_height
    svg.arrow(parent, f"M{last:g} {end:g}V{end + 17:g}", (last, end + 22), "down", "stream")
    style.write(parent, "output", last - 12, end + 17, 250, classes="soft", anchor="end")
    _numbers(parent, panel, layout)


def _encoded(parent: Element, style: Style, layout: _Layout) -> None:
    """From the encoder's end to where the decoder looks at it."""
    start, decoder, low = layout.left("encoder") + STREAM, layout.left("decoder"), _BOTTOM - 1
    x, high = decoder - _GUTTER / 2 + 2, _TOP + stack.middle("cross-attention")
    up = f"H{x - 8:g}q8 0 8 -8V{high + 8:g}q0 -8 8 -8H{decoder + LEFT - 4:g}"
    svg.arrow(parent, f"M{start:g} {low:g}{up}", (decoder + LEFT, high), "right")
    upright = svg.group(parent)
    upright.set("transform", f"translate({x - 6:g} {low - 15:g}) rotate(-90)")
    style.write(upright, "encoder.stream", 0, 0, 230, classes="soft")


def _head(parent: Element, style: Style, layout: _Layout) -> None:
    block = svg.group(parent, style.around("head"), place="head", title=style.tooltip("head"))
    svg.box(block, _EDGE, _HEAD, layout.span, layout.head_height)
    x, y, room, cost = _EDGE + 12, _HEAD + 21, layout.span - 24, style.cost("head")
    style.write(block, "head", x, y, room, ghost="head", prefix="head: ", size=TITLE, classes="bold")
    if layout.is_narrow:
        for line, names in enumerate(_HEAD_FACTS):
            style.write_line(block, "head", names, x, y + 18 + 15 * line, room)
        svg.text(block, x, y + 63, cost, room, size=SMALL, style="soft")
    else:
        svg.text(block, x + room, y, cost, 260, size=SMALL, style="soft", anchor="end")
        style.write_line(block, "head", sum(_HEAD_FACTS, ()), x, y + 19, room)


def _numbers(parent: Element, panel: Panel, layout: _Layout) -> None:
    top = layout.numbers
    svg.path(parent, f"M{_EDGE:g} {top - 8:g}h{layout.span:g}", "rule")
    cache = f"{panel.cache_bytes:,} bytes" if panel.cache_bytes else "none"
    numbers = (
        (count(panel.parameters), "parameters"),
        (si(panel.flops), f"FLOPs per token, at {panel.context:,} tokens"),
        (cache, "KV cache per token, bfloat16"),
    )
    for number, (value, label) in enumerate(numbers):
        if layout.is_narrow:
            x, y, room = _EDGE, top + 14 + 23 * number, layout.panel - _EDGE - 8
            beside = width(value, 16, bold=True) + 8
            labeled = (x + beside, y, room - beside)
        else:
            x, y, room = _EDGE + number * layout.inner / 3, top + 16, layout.inner / 3 - 8
            labeled = (x, y + 16, room)
        svg.text(parent, x, y, value, room, size=16, style="bold")
        svg.text(parent, labeled[0], labeled[1], label, labeled[2], size=SMALL, style="soft")


def _legend(parent: Element, differs: str, layout: _Layout) -> None:
    svg.path(parent, f"M{_EDGE:g} {layout.legend - 6:g}h{layout.span:g}", "rule")
    x, y = _EDGE, layout.legend + 18
    for style, label in (("", "present"), ("ghost", "absent"), ("lit", differs)):
        if label:
            svg.box(svg.group(parent, style), x, y - 10, 20, 12, radius=4)
            text = fit(label, min(150, layout.wide - x - 26 - _MARGIN), SMALL)
            svg.text(parent, x + 26, y, text, 150, size=SMALL, style="soft")
            x += width(text, SMALL) + 44
    x, y = (x, y) if layout.wide >= _BROAD else (_EDGE, y + 18)
    svg.text(parent, x, y, "parameters and FLOPs are of all layers of a stack", 300, size=SMALL, style="soft")


def _rest(parent: Element, rest: Mapping[str, Sequence[str]], columns: int, top: float) -> None:
    if rest:
        svg.text(parent, _EDGE, top + 14, "Also different, but no part of the picture", 400, style="bold")
    for number, (field, values) in enumerate(rest.items()):
        row, column = divmod(number, columns)
        parts = [(field, "soft", ""), (" → ".join(values), "lit", "")]
        svg.line(parent, _EDGE + column * _COLUMN, top + 33 + row * _ROW, parts, _COLUMN - 14, SIZE)


_PHRASES = {
    "position": "position {}",
    "before": "{} before it",
    "output": "{} on its output",
    "after": "{} after it",
    "embedding_norm": "{} after the embedding",
    "final_norm": "{} after the last layer",
}
"""Phrases around the text of a fact, by the last word of its place."""


def kind(panel: Panel) -> str:
    """A model in a line."""
    config = panel.config
    stacks = "encoder-" * (config.encoder_layers > 0) + "decoder-" * (config.decoder_layers > 0)
    name = "encoder-decoder" if config.is_encoder_decoder else f"{stacks}only"
    return f"{name}, {config.d_model:,} wide, up to {config.max_length:,} tokens"


def title(drawn: Sequence[Panel]) -> str:
    """Title of a drawing."""
    return "Architecture of " + " and ".join(panel.name for panel in drawn)


def description(drawn: Sequence[Panel], among: Sequence[Panel]) -> str:
    """All that is drawn of models, and their differences.

    Args:
        among: The models among which differences are lit.
    """
    sentences = [sentence for panel in drawn for sentence in _sentences(panel)]
    if len(among) > 1:
        names = " and ".join(panel.name for panel in among)
        places, differing = differences(among), list[str]()
        for place, texts in places.items():
            above = [place[:end] for end, character in enumerate(place) if character == "."]
            if any(ABSENT in places.get(each, ()) for each in above):
                continue  # a block that one of them lacks is said as a whole
            is_block = any(each.startswith(f"{place}.") for each in places)
            texts = (text if text == ABSENT or not is_block else "present" for text in texts)
            differing.append(f"{_words(place)}: {' against '.join(texts)}")
        differing += [f"{field}: {' against '.join(values)}" for field, values in undrawn(among).items()]
        same = f"{names} are the same."
        sentences.append(f"Differences between {names}: {'; '.join(differing)}." if differing else same)
    return " ".join(sentences)


def _sentences(panel: Panel) -> Iterator[str]:
    """A model: a sentence for each of its blocks."""
    yield f"{panel.name}: {kind(panel)}."
    blocks: dict[str, list[str]] = {}
    for place, fact in panel.facts.items():
        block, _, last = place.rpartition(".")
        is_heading = any(each.startswith(f"{place}.") for each in panel.facts)
        if is_heading and place != "head":
            blocks.setdefault(place, [])
        else:
            blocks.setdefault(block or place, []).append(_PHRASES.get(last, "{}").format(fact.text))
    for block, texts in blocks.items():
        yield f"{_words(block)}: {', '.join(texts)}."
    cache = f"{panel.cache_bytes:,} bytes" if panel.cache_bytes else "No bytes"
    yield f"{cache} of keys and values per token in bfloat16."
    if panel.costs is not None:
        flops = f"{si(panel.flops)} FLOPs per token at {panel.context:,} tokens"
        yield f"{count(panel.parameters)} parameters, {flops}."


def _words(place: str) -> str:
    return " ".join(place.replace(".", " ").replace("_", " ").split())
