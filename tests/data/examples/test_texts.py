"""Texts that a model is asked about: a list of them, or a column of rows."""

from __future__ import annotations

from typing import Any

import pytest

from anyformer.data.examples.tables import read_sentences, read_texts
from anyformer.errors import UserError
from tests.data.examples.test_tables import frames

ROWS = [{"id": i, "review": f"film {i}", "verdict": "yes" if i % 2 else "no"} for i in range(5)]


def test_texts_are_a_column_of_rows_in_every_form() -> None:
    expected = [(f"film {i}", None) for i in range(5)]
    for name, data in frames(ROWS).items():
        assert read_texts(data) == expected, name
        if name != "iterator":
            assert read_texts(data, {"text": "review"}) == expected, name
            assert read_sentences(data) == [text for text, _ in expected], name


def test_a_series_is_a_list_of_texts() -> None:
    pandas, datasets = pytest.importorskip("pandas"), pytest.importorskip("datasets")
    texts = ["a film", "a play"]
    for data in (texts, tuple(texts), iter(texts), pandas.Series(texts), datasets.Dataset.from_dict({"a": texts})["a"]):
        assert read_texts(data) == [(text, None) for text in texts]
    assert read_texts("a film") == [("a film", None)]
    assert read_sentences([["a", "film"], "a play"]) == [["a", "film"], "a play"]


def test_pairs_and_words() -> None:
    pairs: list[dict[str, Any]] = [{"premise": "a", "hypothesis": "b", "label": 1}, {"premise": "c", "hypothesis": "d"}]
    assert read_texts(pairs) == [("a", "b"), ("c", "d")]
    assert read_texts(pairs, {"text": "hypothesis"}) == [("b", None), ("d", None)]
    assert read_texts(pairs, {"text": "hypothesis", "second": "premise"}) == [("b", "a"), ("d", "c")]
    words = [{"text": "a film", "tokens": ["a", "film"], "tags": ["O", "O"]}]
    assert read_sentences(words) == [["a", "film"]]
    assert read_sentences(words, {"text": "text"}) == ["a film"]
    assert read_sentences([{"split": ["a", "film"]}], {"tokens": "split"}) == [["a", "film"]]
    assert read_texts([{"one": "a film", "two": 3}]) == [("a film", None)]


def test_what_has_no_text_is_one_sentence() -> None:
    for data, columns, reason in (
        ([{"a": "x y", "b": "z"}], None, r"columns 'a', 'b', none of which .* columns=\{'text': 'a'\}"),
        (ROWS, {"text": "reviews"}, "data, row 1, has no column 'reviews': did you mean 'review'"),
        ([*ROWS, {"review": None}], None, "data, row 6, has nothing in its column 'review'"),
        ([*ROWS, {"review": 3}], None, "data, row 6, has no text in its column 'review'"),
        (["a film"], {"text": "review"}, "leave columns out"),
        (["a film", 3], None, "Text 2 of 2 is no text: it is of type int"),
        (3, None, "not a int"),
        ({"train": ROWS}, None, r"such as data\['train'\]"),
    ):
        given: Any = data
        with pytest.raises(UserError, match=reason):
            read_texts(given, columns)
        with pytest.raises(UserError, match=reason):
            read_sentences(given, columns)
