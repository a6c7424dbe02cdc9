"""Thumbnails of attention masks: a row for each token, a column for each token that it may see."""

from xml.etree.ElementTree import Element

from anyformer.learn.diagram.svg import add

SIZE = 42.0
"""Width and height in pixels."""
_CELLS, _SOURCE, _WINDOW = 7, 5, 3


def sees(kind: str, query: int, key: int) -> bool:
    """Whether a token sees another.

    Args:
        kind: full, causal, window (causal and near), band (near, on both sides) or cross (all of another text).
        query: The place of the token.
        key: The place of the other.
    """
    near = abs(query - key) < _WINDOW
    return {"causal": key <= query, "window": key <= query and near, "band": near}.get(kind, True)


def draw(parent: Element, kind: str, x: float, y: float) -> None:
    """Draw a mask into a square."""
    step = SIZE / _CELLS
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
