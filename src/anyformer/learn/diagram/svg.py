"""SVG: elements with the few shapes that a drawing is made of, and how they look in a light and a dark window."""

from bisect import bisect_right
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
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
_CONDENSED = 1.6
"""How many times as wide as its room a text may be to be condensed; what is longer is truncated to that."""


def width(text: str, size: float, *, bold: bool = False) -> float:
    """Upper bound of the width of a line of text, in pixels as the size of its font."""
    return size * (1.13 if bold else 1.0) * sum(map(_width, text))


def fit(text: str, room: float, size: float, *, bold: bool = False) -> str:
    """The text, or as much of it as there is room for and an ellipsis."""
    text = clean(text)
    if width(text, size, bold=bold) <= room:
        return text

    def width_of_start(end: int) -> float:
        return width(text[:end] + "…", size, bold=bold)

    longest = bisect_right(range(1, len(text) + 1), room, key=width_of_start)
    return text[:longest].rstrip() + "…"


def clean(text: str) -> str:
    """The text in one line, with a mark for each character that XML doesn't allow or that isn't seen."""
    hidden = {each for each in text if each not in _XML and category(each) in ("Cc", "Cf", "Cs", "Co", "Cn")}
    return " ".join("".join("�" if character in hidden else character for character in text).split())


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


def root(identifier: str, size: tuple[float, float], title: str, description: str) -> Element:
    """An empty picture of a width and height in pixels, which a screen reader reads as its title and description.

    Every other identifier in it begins with its own, and every rule of its style is for it alone.
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
    add(picture, "style").text = _style().replace("#ID", f"#{identifier}")
    add(picture, "rect", {"class": "paper", "width": wide, "height": high, "rx": "12"})
    return picture


@cache
def _style() -> str:
    # It has a class for each size of font: a page around the picture may have rules for every svg, which are stronger
    # than attributes.
    return "\n" + (files(__package__ or "") / "picture.css").read_text(encoding="utf-8")


def add(parent: Element, tag: str, attributes: dict[str, str] | None = None) -> Element:
    """A new element in another."""
    return ElementTree.SubElement(parent, tag, attributes or {})


def group(parent: Element, *classes: str, x: float = 0, y: float = 0, place: str = "", title: str = "") -> Element:
    """A group of elements, with an origin of its own. The title is shown by a mouse that rests on it."""
    attributes = {"class": " ".join(filter(None, classes)), "data-place": place}
    element = add(parent, "g", {name: value for name, value in attributes.items() if value})
    if x or y:
        element.set("transform", f"translate({x:g} {y:g})")
    if title:
        add(element, "title").text = clean(title)
    return element


def box(parent: Element, x: float, y: float, wide: float, high: float, style: str = "box", radius: float = 6) -> None:
    """A rectangle."""
    numbers = {"x": x, "y": y, "width": wide, "height": high, "rx": radius}
    add(parent, "rect", {"class": style, **{name: f"{number:g}" for name, number in numbers.items()}})


def path(parent: Element, points: str, style: str = "flow") -> None:
    """A line, as in SVG's own notation."""
    add(parent, "path", {"class": style, "d": points})


def arrow(parent: Element, points: str, tip: tuple[float, float], towards: str, style: str = "flow") -> None:
    """A line, in SVG's own notation, that ends with an arrowhead at a tip, towards left, right, up or down."""
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
) -> None:
    """A line of text, condensed to the pixels that there are for it, and truncated if it is far too long.

    Args:
        x: Its start, middle or end, as `anchor` says.
        y: Its baseline.
        room: Pixels that it may be wide.
        size: Of the font, one of those in picture.css.
        style: Its classes.
        anchor: start, middle or end.
        place: Of the fact that it states.
    """
    attributes = {"text-anchor": anchor.removeprefix("start"), "data-place": place}
    element = add(parent, "text", {"x": f"{x:g}", "y": f"{y:g}", "class": f"{_size(size)} {style}".strip()})
    element.attrib.update({name: value for name, value in attributes.items() if value})
    bold = "bold" in style or "lit" in style
    element.text = fit(content, _CONDENSED * room, size, bold=bold)
    _condense(element, width(element.text, size, bold=bold), room)


def line(parent: Element, x: float, y: float, parts: Sequence[tuple[str, str, str]], room: float, size: float) -> None:
    """Several texts in one line, with a dot between them; condensed as in `text`, the longest truncated.

    Args:
        parts: Text, classes and place of each.
    """
    dot = " · "
    texts = [clean(content) for content, _, _ in parts]
    widths = [width(content, size, bold="lit" in style) for content, (_, style, _) in zip(texts, parts, strict=True)]
    total = sum(widths) + width(dot, size) * (len(parts) - 1)
    excess = total - _CONDENSED * room
    if excess > 0:
        longest = widths.index(max(widths))
        texts[longest] = fit(texts[longest], widths[longest] - excess, size, bold="lit" in parts[longest][1])
    element = add(parent, "text", {"x": f"{x:g}", "y": f"{y:g}", "class": _size(size)})
    _condense(element, total, room)
    for number, (content, (_, style, place)) in enumerate(zip(texts, parts, strict=True)):
        if number:
            add(element, "tspan", {"class": "soft"}).text = dot
        attributes = {"data-place": place, "class": style}
        add(element, "tspan", {name: value for name, value in attributes.items() if value}).text = content


def _condense(element: Element, wide: float, room: float) -> None:
    """Draw a text that is wider than its room just as wide as that."""
    if wide > room:
        element.attrib.update({"textLength": f"{room:g}", "lengthAdjust": "spacingAndGlyphs"})


def _size(size: float) -> str:
    return f"size-{round(10 * size)}"


def to_text(picture: Element) -> str:
    """The picture as XML, a line for each element that is not part of a text."""
    for element in picture.iter():
        if element.tag in ("svg", "g"):
            element.text = "\n"
        if element.tag != "tspan":
            element.tail = "\n"
    return ElementTree.tostring(picture, encoding="unicode")
