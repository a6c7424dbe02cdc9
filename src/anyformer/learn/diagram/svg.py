"""SVG: elements with the few shapes that a drawing is made of, and how they look in a light and a dark window."""

from collections.abc import Sequence
from unicodedata import category, combining, east_asian_width
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

_WIDTHS = {
    character: width
    for width, characters in (
        (0.42, "fijltI.,:;'|!()[]/ ·-"),
        (0.45, 'r"'),
        (0.62, "acekosvxyz_"),
        (0.66, "√θ"),
        (0.84, "+=<>~#&^×÷→"),
        (1.03, "mwMW@%—…"),
    )
    for character in characters
}
"""Widths of characters as shares of the font size."""
_XML = {"\t", "\n", "\r"}


def width(text: str, size: float, *, bold: bool = False) -> float:
    """At most how many pixels wide a line of text is.

    Args:
        text: The line.
        size: Of the font, in pixels.
        bold: Whether it is bold.
    """
    return size * (1.13 if bold else 1.0) * sum(map(_width, text))


def fit(text: str, room: float, size: float, *, bold: bool = False) -> str:
    """The text, or as much of it as there is room for and an ellipsis."""
    text = clean(text)
    if width(text, size, bold=bold) <= room:
        return text
    low, high = 0, len(text)
    while low < high:  # the longest beginning that fits
        middle = (low + high + 1) // 2
        if width(text[:middle] + "…", size, bold=bold) <= room:
            low = middle
        else:
            high = middle - 1
    return text[:low].rstrip() + "…"


def clean(text: str) -> str:
    """The text in one line, with a mark for each character that XML doesn't allow or that isn't seen."""
    return " ".join("".join(character if _is_shown(character) else "�" for character in text).split())


def _is_shown(character: str) -> bool:
    return character in _XML or category(character) not in ("Cc", "Cf", "Cs", "Co", "Cn")


def _width(character: str) -> float:
    if combining(character):
        return 0.0
    if east_asian_width(character) in "WF":
        return 1.05
    if character in _WIDTHS:
        return _WIDTHS[character]
    if character.isascii():
        return 0.79 if character.isupper() else 0.65
    return 0.85 if category(character)[0] in "LN" else 1.05


_STYLE = """
#ID { --paper: #ffffff; --card: #f6f7f8; --fill: #ffffff; --ink: #1d2329; --soft: #56606b; --faint: #7d8792;
  --line: #b3bbc4; --edge: #dde1e6; --lit: #b3470c; --lit-fill: #fdf0e7; color-scheme: light dark; touch-action: auto;
  max-width: 100%; height: auto; }
@media (prefers-color-scheme: dark) {
  #ID { --paper: #0f1318; --card: #161b21; --fill: #1c2229; --ink: #e6eaee; --soft: #a2adb8; --faint: #828d98;
    --line: #56616c; --edge: #2b323a; --lit: #f7a878; --lit-fill: #38241a; }
}
#ID text { font-family: Inter, system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, "DejaVu Sans",
  sans-serif; fill: var(--ink); font-variant-numeric: tabular-nums; }
SIZES
#ID path { stroke: none; stroke-linecap: butt; stroke-linejoin: miter; }
#ID .soft { fill: var(--soft); }
#ID .bold { font-weight: 600; }
#ID .paper { fill: var(--paper); }
#ID .card { fill: var(--card); stroke: var(--edge); }
#ID .box { fill: var(--fill); stroke: var(--line); stroke-width: 1.2; }
#ID .stream { stroke: var(--ink); stroke-width: 2.2; fill: none; }
#ID .flow { stroke: var(--soft); stroke-width: 1.2; fill: none; }
#ID .rule { stroke: var(--edge); fill: none; }
#ID .sum { fill: var(--fill); stroke: var(--ink); stroke-width: 1.4; }
#ID .tip { fill: var(--ink); }
#ID .seen { fill: var(--soft); }
#ID .unseen { fill: var(--edge); }
#ID .ghost .box, #ID .ghost.card { fill: none; stroke: var(--line); stroke-width: 1; stroke-dasharray: 3 3; }
#ID .ghost text, #ID text.ghost { fill: var(--faint); }
#ID .ghost .stream, #ID .ghost .flow, #ID .ghost .sum { stroke: var(--edge); }
#ID .ghost .sum { fill: none; }
#ID .ghost .tip { fill: var(--edge); }
#ID .lit > .box { fill: var(--lit-fill); stroke: var(--lit); }
#ID .ghost.lit > .box { fill: none; stroke: var(--lit); }
#ID text.lit, #ID tspan.lit { fill: var(--lit); font-weight: 600; }
#ID .lit > .seen { fill: var(--lit); }
"""

# Of the page around it other rules may hold for every svg, so that an attribute such as font-size is not enough.
_SIZES = (10.0, 11.5, 12.0, 13.0, 15.0, 16.0, 18.0)
"""Font sizes in pixels."""


def root(identifier: str, size: tuple[float, float], title: str, description: str) -> Element:
    """An empty picture, which a screen reader reads as its title and description.

    Args:
        identifier: Of the picture in its page; every other identifier begins with it, and every rule of style is for it
            alone.
        size: Width and height in pixels.
        title: What it is.
        description: What it shows, in words.
    """
    wide, high = (f"{side:g}" for side in size)
    picture = Element(
        "svg",
        {
            "xmlns": "http://www.w3.org/2000/svg",
            "id": identifier,
            "viewBox": f"0 0 {wide} {high}",
            "width": wide,
            "height": high,
            "role": "img",
            "aria-labelledby": f"{identifier}-title {identifier}-desc",
        },
    )
    for tag, text in (("title", title), ("desc", description)):
        add(picture, tag, {"id": f"{identifier}-{tag}"}).text = clean(text)
    sizes = "\n".join(f"#ID .{_size(size)} {{ font-size: {size:g}px; }}" for size in _SIZES)
    add(picture, "style").text = _STYLE.replace("SIZES", sizes).replace("#ID", f"#{identifier}")
    add(picture, "rect", {"class": "paper", "width": wide, "height": high, "rx": "12"})
    return picture


def add(parent: Element, tag: str, attributes: dict[str, str] | None = None) -> Element:
    """A new element in another."""
    return ElementTree.SubElement(parent, tag, attributes or {})


def group(parent: Element, *classes: str, x: float = 0, y: float = 0, place: str = "", title: str = "") -> Element:
    """A group of elements, with an origin of its own. The title is shown by a mouse that rests on it."""
    attributes = {"class": " ".join(filter(None, classes)), "data-place": place}
    made = add(parent, "g", {name: value for name, value in attributes.items() if value})
    if x or y:
        made.set("transform", f"translate({x:g} {y:g})")
    if title:
        add(made, "title").text = clean(title)
    return made


def box(parent: Element, x: float, y: float, wide: float, high: float, style: str = "box", radius: float = 6) -> None:
    """A rectangle."""
    numbers = {"x": x, "y": y, "width": wide, "height": high, "rx": radius}
    add(parent, "rect", {"class": style, **{name: f"{number:g}" for name, number in numbers.items()}})


def path(parent: Element, points: str, style: str = "flow") -> None:
    """A line, as in SVG's own notation."""
    add(parent, "path", {"class": style, "d": points})


def arrow(parent: Element, points: str, tip: tuple[float, float], towards: str, style: str = "flow") -> None:
    """A line that ends with an arrowhead.

    Args:
        parent: What it is drawn in.
        points: The line, in SVG's notation.
        tip: Its end.
        towards: left, right, up or down.
        style: Of the line.
    """
    path(parent, points, style)
    x, y = tip
    long, half = 6, 3.5
    dx, dy = {"left": (1, 0), "right": (-1, 0), "up": (0, 1), "down": (0, -1)}[towards]
    corners = [(x, y), *((x + long * dx + side * half * dy, y + long * dy + side * half * dx) for side in (1, -1))]
    add(parent, "polygon", {"class": "tip", "points": " ".join(f"{a:g},{b:g}" for a, b in corners)})


def text(
    parent: Element,
    x: float,
    y: float,
    content: str,
    room: float,
    *,
    size: float = 11.5,
    style: str = "",
    anchor: str = "start",
    place: str = "",
) -> Element:
    """A line of text, cut to the room that there is for it.

    Args:
        parent: What it is drawn in.
        x: Where it begins, or what `anchor` says of it.
        y: Its baseline.
        content: The text.
        room: Pixels that it may be wide.
        size: Of the font.
        style: Its classes.
        anchor: start, middle or end.
        place: Of the fact that it states.
    """
    made = add(parent, "text", {"x": f"{x:g}", "y": f"{y:g}", "class": f"{_size(size)} {style}".strip()})
    for name, value in (("text-anchor", anchor.removeprefix("start")), ("data-place", place)):
        if value:
            made.set(name, value)
    made.text = fit(content, room, size, bold="bold" in style or "lit" in style)
    return made


def line(parent: Element, x: float, y: float, parts: Sequence[tuple[str, str, str]], room: float, size: float) -> None:
    """Several texts in one line, with a dot between them; where they are too long for it, the longest is cut.

    Args:
        parent: What they are drawn in.
        x: Where they begin.
        y: Their baseline.
        parts: Text, classes and place of each.
        room: Pixels that they may be wide together.
        size: Of the font.
    """
    dot = " · "
    texts = [clean(content) for content, _, _ in parts]
    widths = [width(content, size, bold="lit" in style) for content, (_, style, _) in zip(texts, parts, strict=True)]
    left = room - width(dot, size) * (len(parts) - 1)
    if sum(widths) > left:
        longest = widths.index(max(widths))
        rest = left - sum(widths) + widths[longest]
        texts[longest] = fit(texts[longest], rest, size, bold="lit" in parts[longest][1])
    made = add(parent, "text", {"x": f"{x:g}", "y": f"{y:g}", "class": _size(size)})
    for number, (content, (_, style, place)) in enumerate(zip(texts, parts, strict=True)):
        if number:
            add(made, "tspan", {"class": "soft"}).text = dot
        attributes = {"data-place": place, "class": style}
        span = add(made, "tspan", {name: value for name, value in attributes.items() if value})
        span.text = content


def _size(size: float) -> str:
    """The class of a size, one of `_SIZES`."""
    return f"size-{round(10 * size)}"


def to_text(picture: Element) -> str:
    """The picture as XML, a line for each element that is not part of a text."""
    for element in picture.iter():
        if element.tag in ("svg", "g"):
            element.text = "\n"
        if element.tag != "tspan":
            element.tail = "\n"
    return ElementTree.tostring(picture, encoding="unicode")
