"""Pictures of a computation: every number is there, and nothing is outside of the picture or on top of another."""

from __future__ import annotations

import math
from itertools import pairwise
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anyformer.learn.diagram import Matrix, matrices, stream

_SVG = "{http://www.w3.org/2000/svg}"
_numbers = st.integers(-1000, 1000).map(lambda number: number / 16) | st.just(-math.inf)


@st.composite
def _matrices(draw: st.DrawFn) -> Matrix:
    rows, columns = draw(st.integers(1, 5)), draw(st.integers(1, 5))
    name = draw(st.sampled_from(["Q", "softmax(scores)", "<x> & y"]))
    if draw(st.booleans()):
        return Matrix(name, (rows * 40, columns), "time", "d_model")
    values = [[draw(_numbers) for _ in range(columns)] for _ in range(rows)]
    return Matrix(name, values, [f"token {row}" for row in range(rows)], "")


def _texts(picture: ElementTree.Element) -> list[str]:
    return [node.text or "" for node in picture.iter(f"{_SVG}text")]


@given(st.lists(_matrices(), min_size=1, max_size=4))
def test_matrices(parts: list[Matrix]) -> None:
    joined = [part for matrix in parts for part in (matrix, "@")][:-1]
    picture = ElementTree.fromstring(matrices(*joined))
    texts, width = _texts(picture), float(picture.get("width", "0"))
    for matrix in parts:
        assert texts.count(matrix.name) >= 1
        assert any(text.startswith(" × ".join(map(str, matrix.shape))) for text in texts)
    assert texts.count("@") == len(parts) - 1
    finite = [value for matrix in parts for row in matrix.numbers for value in row if math.isfinite(value)]
    assert {f"{value:.2g}" for value in finite} <= set(texts)
    boxes = [node for node in picture.iter(f"{_SVG}rect") if node.get("class") == "box"]
    ends = [(float(box.get("x", "0")), float(box.get("x", "0")) + float(box.get("width", "0"))) for box in boxes]
    assert len(ends) == len(parts)
    assert all(end <= start for (_, end), (start, _) in pairwise(ends))
    assert ends[0][0] >= 0
    assert ends[-1][1] <= width


def test_the_shape_of_a_matrix() -> None:
    assert Matrix("x", (8, 32)).shape == (8, 32)
    assert Matrix("x", (1, 2)).numbers == []
    assert Matrix("x", [[1.0, 2.0]]).shape == (1, 2)


@pytest.mark.parametrize("sizes", [[1.0], [1.0, 2.5, 2.0]])
def test_the_stream_is_as_thick_as_its_vector_is_long(sizes: list[float]) -> None:
    named = [(f"part {number}", size) for number, size in enumerate(sizes)]
    picture = ElementTree.fromstring(stream(named))
    texts = _texts(picture)
    for name, size in named:
        assert name in texts
        assert f"|x| = {size:.1f}" in texts
    lines = [node for node in picture.iter(f"{_SVG}rect") if node.get("class") == "seen"]
    heights = {round(float(line.get("height", "0")), 3) for line in lines}
    assert heights == {round(2 + 16 * size / max(sizes), 3) for size in sizes}
    assert texts.count("+") == len(sizes) - 1
