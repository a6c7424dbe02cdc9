"""Pictures of a computation, for teaching: products of matrices with their numbers, and what a residual stream carries.

::

    svg = matrices(Matrix("Q", q), "@", Matrix("Kᵀ", k.T), "=", Matrix("scores", scores))
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast
from xml.etree.ElementTree import Element

from anyformer.learn.diagram import svg
from anyformer.learn.diagram.svg import width

_CELL, _SIGN, _MARGIN = (40.0, 26.0), 46.0, 18.0
_NAME, _BELOW = 26.0, 40.0
"""Pixels above a matrix for its name, and below it for its shape."""
_LARGEST, _SMALLEST, _SCALE = 150.0, 16.0, 5.0
"""Pixels of a side that stands for a number of rows or columns: at most, at least, and of each."""


@dataclass(frozen=True)
class Matrix:
    """A matrix in a picture.

    Attributes:
        name: What is written above it.
        values: Its numbers; or only its shape, and then its sides are proportional to it.
        rows, columns: What they stand for: one word, such as time, or of numbers one a row and a column.
    """

    name: str
    values: Sequence[Sequence[float]] | tuple[int, int]
    rows: str | Sequence[str] = ""
    columns: str | Sequence[str] = ""

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        rows, *others = self.values
        if isinstance(rows, int):
            return rows, cast("int", others[0])
        return len(self.values), len(rows)

    @property
    def numbers(self) -> list[list[float]]:
        """Its numbers; none where only the shape is known."""
        return [[float(value) for value in row] for row in self.values if not isinstance(row, int)]

    @property
    def size(self) -> tuple[float, float]:
        """Width and height in pixels."""
        rows, columns = self.shape
        if self.numbers:
            return columns * _CELL[0], rows * _CELL[1]
        wide, high = (min(_LARGEST, max(_SMALLEST, side * _SCALE)) for side in (columns, rows))
        return wide, high


def matrices(*parts: Matrix | str, title: str = "Matrices", identifier: str = "matrices") -> str:
    """Matrices beside each other, with signs such as ``"@"`` or ``"softmax →"`` between them, as SVG.

    The title is for screen readers; two pictures on one page need different identifiers.
    """
    rooms = [_room(part) for part in parts]
    high = max(part.size[1] for part in parts if isinstance(part, Matrix))
    described = " ".join(part if isinstance(part, str) else part.name for part in parts)
    picture = svg.root(identifier, (sum(rooms) + 2 * _MARGIN, _MARGIN + _NAME + high + _BELOW), title, described)
    x = _MARGIN
    for part, room in zip(parts, rooms, strict=True):
        if isinstance(part, str):
            middle = _MARGIN + _NAME + high / 2 + 5
            svg.text(picture, x + room / 2, middle, part, room, size=13.0, style="bold", anchor="middle")
        else:
            wide, own = part.size
            _draw_matrix(picture, part, x + (room - wide + _labels(part)) / 2, _MARGIN + _NAME + (high - own) / 2, room)
        x += room
    return svg.to_text(picture)


def stream(sizes: Sequence[tuple[str, float]], *, identifier: str = "stream") -> str:
    """The residual stream from left to right, as SVG: each part reads it and adds to it.

    Args:
        sizes: Name of what begins the stream and of each part that adds to it, and the length of the stream's vector
            after it; the line is as thick as the vector is long.
        identifier: Of the picture in its page.
    """
    step, line, top = 124.0, 128.0, 44.0
    wide = _MARGIN * 2 + step * len(sizes)
    described = ", ".join(f"{name}: {size:.1f}" for name, size in sizes)
    picture = svg.root(identifier, (wide, 178), "The residual stream", f"Length of the vector after {described}")
    longest = max(size for _, size in sizes)
    for number, (name, size) in enumerate(sizes):
        x, thick = _MARGIN + step * number, 2 + 16 * size / longest
        svg.box(picture, x + (30 if number else 0), line - thick / 2, step - (30 if number else 0), thick, "seen", 0)
        svg.text(picture, x + step / 2 + 15, line + 32, f"|x| = {size:.1f}", step, style="soft", anchor="middle")
        if not number:
            svg.text(picture, x, line - 22, name, step - 8, style="bold")
            continue
        previous = 2 + 16 * sizes[number - 1][1] / longest
        svg.box(picture, x, line - previous / 2, 22, previous, "seen", 0)
        svg.box(picture, x - 20, top - 26, 108, 34)
        svg.text(picture, x + 34, top - 4, name, 104, anchor="middle")
        svg.arrow(picture, f"M{x - 4:g} {line - previous / 2:g}V{top + 8:g}", (x - 4, top + 10), "up")
        svg.arrow(picture, f"M{x + 26:g} {top + 8:g}V{line - 14:g}", (x + 26, line - 11), "down")
        svg.add(picture, "circle", {"class": "sum", "cx": f"{x + 26:g}", "cy": f"{line:g}", "r": "10"})
        svg.text(picture, x + 26, line + 4.5, "+", 20, size=13.0, anchor="middle")
    return svg.to_text(picture)


def _labels(matrix: Matrix) -> float:
    """Pixels that the names of rows take, at the left."""
    names = () if isinstance(matrix.rows, str) else matrix.rows
    return max((width(name, 10) + 8 for name in names), default=0.0)


def _room(part: Matrix | str) -> float:
    if isinstance(part, str):
        return max(_SIGN, width(part, 13, bold=True) + 16)
    return max(part.size[0] + _labels(part), width(part.name, 13, bold=True), width(_shape(part), 10)) + 12


def _shape(matrix: Matrix) -> str:
    names = [name for name in (matrix.rows, matrix.columns) if isinstance(name, str) and name]
    return " × ".join(map(str, matrix.shape)) + (f"  ({' × '.join(names)})" if names else "")


def _draw_matrix(picture: Element, matrix: Matrix, x: float, y: float, room: float) -> None:
    wide, high = matrix.size
    middle = x + wide / 2
    svg.text(picture, middle, y - 10, matrix.name, room, size=13.0, style="bold", anchor="middle")
    svg.text(picture, middle, y + high + 30, _shape(matrix), room, size=10.0, style="soft", anchor="middle")
    svg.box(picture, x, y, wide, high, radius=2)
    numbers = matrix.numbers
    largest = max((abs(value) for row in numbers for value in row if math.isfinite(value)), default=0.0) or 1.0
    for row, values in enumerate(numbers):
        if not isinstance(matrix.rows, str):
            svg.text(picture, x - 6, y + (row + 0.68) * _CELL[1], matrix.rows[row], 90, size=10.0, anchor="end")
        for column, value in enumerate(values):
            left, top = x + column * _CELL[0], y + row * _CELL[1]
            cell = {"x": f"{left:g}", "y": f"{top:g}", "width": f"{_CELL[0]:g}", "height": f"{_CELL[1]:g}"}
            strength = abs(value) / largest if math.isfinite(value) else 0.0
            svg.add(picture, "rect", {"class": "seen", "opacity": f"{0.45 * strength:.2f}", **cell})
            shown = f"{value:.2g}" if math.isfinite(value) else "-∞"
            svg.text(picture, left + _CELL[0] / 2, top + 17, shown, _CELL[0], size=10.0, anchor="middle")
    if not isinstance(matrix.columns, str):
        for column, name in enumerate(matrix.columns):
            center = x + (column + 0.5) * _CELL[0]
            svg.text(picture, center, y + high + 14, name, _CELL[0], size=10.0, anchor="middle")
