"""Rows that a program holds."""

from __future__ import annotations

import datetime
import json
import subprocess
import sys
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from anyformer.data.disk_cache import Cache
from anyformer.data.examples.columns import Columns
from anyformer.data.examples.tables import Table, kept_paths, read_data, read_sentences, read_texts
from anyformer.data.materialize import read_rows
from anyformer.data.rows import records
from anyformer.errors import UserError
from anyformer.tasks.loading import load_examples

ROWS = [{"text": f"film {i}", "label": "yes" if i % 2 else "no"} for i in range(6)]
_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**40), 2**40) | st.floats(allow_nan=False, allow_infinity=False) | _TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_TEXT, inner, max_size=3),
    max_leaves=6,
)


def _table(data: object) -> Table:
    found = read_data(data)
    assert isinstance(found, Table)
    return found


class Polars:
    """A data frame that has what polars' have."""

    columns = ("text", "label")

    def __init__(self, rows: list[dict[str, Any]]) -> None:
        self._rows = rows

    def to_dicts(self) -> list[dict[str, Any]]:
        return self._rows


def frames(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The same rows in each form."""
    pandas, datasets, arrow = (pytest.importorskip(name) for name in ("pandas", "datasets", "pyarrow"))
    made = {
        "rows": rows,
        "iterator": iter(rows),
        "pandas": pandas.DataFrame(rows),
        "pyarrow": arrow.Table.from_pylist(rows),
        "datasets": datasets.Dataset.from_list(rows),
        "tensors": datasets.Dataset.from_list(rows).with_format("numpy"),
        "streamed": datasets.Dataset.from_list(rows).to_iterable_dataset(),
        "like polars": Polars(rows),
    }
    try:
        import polars  # pyright: ignore[reportMissingImports]
    except ImportError:
        return made
    return {**made, "polars": polars.DataFrame(rows)}


def test_rows_are_the_same_in_every_form(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    expected = load_examples([str(tmp_path / "rows.jsonl")])
    for name, data in frames(ROWS).items():
        found = load_examples(_table(data))
        assert found.labels == expected.labels, name
        texts = [(each.text, each.label) for each in found.examples]  # pyright: ignore
        assert texts == [(row["text"], row["label"]) for row in ROWS], name
        assert str(found.examples[2].location) == "data, row 3"


def test_names_of_classes_keep_their_order(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    names = ["yes", "no", "maybe"]
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=names)})
    rows = [{"text": f"film {i}", "label": i % 2} for i in range(4)]
    data = datasets.Dataset.from_list(rows, features=features)
    (kept,) = kept_paths(data, lambda: Cache(tmp_path))
    for found in (load_examples(_table(data)), load_examples([kept])):
        assert found.labels == tuple(names)
        assert [each.label for each in found.examples] == ["yes", "no", "yes", "no"]  # pyright: ignore


def test_none_of_the_libraries_is_imported() -> None:
    program = (
        "import sys; from anyformer.data.examples.tables import read_data; read_data([{'text': 'a'}]); "
        "print({'pandas', 'polars', 'datasets', 'pyarrow', 'torch'} & set(sys.modules))"
    )
    assert subprocess.check_output([sys.executable, "-c", program], text=True) == "set()\n"


@given(st.lists(st.dictionaries(_TEXT, _VALUES, min_size=1, max_size=3), min_size=1, max_size=4))
def test_rows_are_what_a_file_of_them_holds(tmp_path_factory: pytest.TempPathFactory, rows: list[Any]) -> None:
    table = _table(rows)
    (kept,) = kept_paths(rows, lambda: Cache(tmp_path_factory.getbasetemp() / "cache"))
    assert [row.values for row in table.rows()] == [row.values for row in read_rows([kept])] == rows
    assert Path(kept).name == table.file[0]


def test_values_of_other_libraries_are_plain() -> None:
    row = {
        "array": np.array([[1, 2]]),
        "number": np.float32(0.5),
        "nan": float("nan"),
        "date": datetime.date(2026, 1, 2),
        "money": Decimal("1.5"),
        "words": ("a", "b"),
        "text": np.str_("x"),
        7: True,
    }
    plain = {"array": [[1, 2]], "number": 0.5, "nan": None, "date": "2026-01-02", "money": 1.5, "words": ["a", "b"]}
    assert _table([row]).values == [{**plain, "text": "x", "7": True}]
    pandas = pytest.importorskip("pandas")
    missing = pandas.DataFrame({"a": ["x", None], "b": [1, pandas.NA], "c": [pandas.Timestamp(2026, 1, 2), pandas.NaT]})
    assert _table(missing).values[1] == {"a": None, "b": None, "c": None}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (5, "data is of type int: give files, or rows as a list of dicts"),
        ({"train": [], "test": []}, r"data is a dict of 'train', 'test': .* such as data\['train'\]"),
        ([{"a": 1}, "x.csv"], "item 2 is a str"),
        (
            [{"a": object()}],
            "data, row 1, is not what a .jsonl file can hold: in its column 'a' is a value of type obj",
        ),
        ([{"a": b"x"}], "a value of type bytes"),
    ],
)
def test_what_is_no_data_is_one_sentence(data: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_data(data)


def test_what_is_found_in_rows_is_one_sentence(tmp_path: Path) -> None:
    deep: list[Any] = []
    for _ in range(2000):
        deep = [deep]
    with pytest.raises(UserError, match="nested more than 100 levels deep"):
        read_data([{"a": deep}])
    with pytest.raises(UserError, match="data, row 1, holds half a character"):
        kept_paths([{"a": "\ud800"}], lambda: Cache(tmp_path))
    assert not list(tmp_path.rglob("*.jsonl"))
    pandas = pytest.importorskip("pandas")
    with pytest.raises(UserError, match="data has 2 columns called 'a'"):
        read_data(pandas.DataFrame([[1, 2]], columns=["a", "a"]))
    with pytest.raises(UserError, match=r"data is a Series, one column: give rows, such as df\[\['review'\]\]"):
        read_data(pandas.DataFrame(REVIEWS)["review"])
    with pytest.raises(UserError, match="There is no example to read: data is empty"):
        load_examples(_table(pandas.DataFrame({"text": []})))


def test_paths_stay_paths() -> None:
    assert read_data("a.csv") == read_data(Path("a.csv")) == read_data(["a.csv"]) == ("a.csv",)
    assert read_data(()) == ()


REVIEWS = [{"id": i, "review": f"film {i}", "verdict": "yes" if i % 2 else "no"} for i in range(5)]


def test_texts_are_a_column_of_rows_in_every_form() -> None:
    expected = [(f"film {i}", None) for i in range(5)]
    for name, data in frames(REVIEWS).items():
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


def test_kept_rows_are_called_data(tmp_path: Path) -> None:
    rows: Any = [{"text": "a film", "label": 1}, {"text": "", "label": 0}]
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])})
    for data, place in ((rows, "line"), (datasets.Dataset.from_list(rows, features=features), "row")):
        (kept,) = kept_paths(data, lambda: Cache(tmp_path))
        with pytest.raises(UserError, match=f"^data, {place} 2, has an empty text"):
            load_examples([kept])
    (kept,) = kept_paths(REVIEWS, lambda: Cache(tmp_path))
    with pytest.raises(UserError, match=r"^data, line 1, has no field 'text'"):
        list(records(Path(kept), ("text",)))
    assert "5 examples in data; " in load_examples([kept], columns=Columns(text="review", label="verdict")).describe()


def test_words_are_texts() -> None:
    words: Any = [["a", "film"], ["a", None]]
    with pytest.raises(UserError, match="Text 2: word 2 of 2 is no text: it is of type NoneType"):
        read_sentences(words)
    with pytest.raises(UserError, match="Text 1 of 2 is no text: it is of type list"):
        read_texts(words)


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
        (REVIEWS, {"text": "reviews"}, "data, row 1, has no column 'reviews': did you mean 'review'"),
        ([*REVIEWS, {"review": None}], None, "data, row 6, has nothing in its column 'review'"),
        ([*REVIEWS, {"review": 3}], None, "data, row 6, has no text in its column 'review'"),
        (["a film"], {"text": "review"}, "leave columns out"),
        (["a film", 3], None, "Text 2 of 2 is no text: it is of type int"),
        (3, None, "not a int"),
        ({"train": REVIEWS}, None, r"such as data\['train'\]"),
    ):
        given: Any = data
        with pytest.raises(UserError, match=reason):
            read_texts(given, columns)
        with pytest.raises(UserError, match=reason):
            read_sentences(given, columns)
