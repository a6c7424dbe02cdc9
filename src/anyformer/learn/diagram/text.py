"""How wide a text is, and how much of it fits.

A drawing doesn't know its reader's fonts. Widths are those of DejaVu Sans, the widest of the fonts that it names.
"""

from unicodedata import category, combining, east_asian_width

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
