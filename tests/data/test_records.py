from __future__ import annotations

import ast
import csv
import gzip
import io
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import anyformer as af
from anyformer.data.corpus import documents
from anyformer.data.rows import records
from anyformer.errors import UserError

here = settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
text = st.text(st.characters(exclude_characters="\0\ufeff", exclude_categories=["Cs"]), max_size=20)


def table(path: Path, rows: list[list[str]], **options: Any) -> Path:
    held = io.StringIO(newline="")
    delimiter: Any = options.pop("delimiter", "\t" if ".tsv" in path.name else ",")
    csv.writer(held, delimiter=delimiter, **options).writerows(rows)
    content = held.getvalue().encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


@here
@given(
    rows=st.lists(st.tuples(text, text), min_size=1, max_size=8),
    name=st.sampled_from(["a.csv", "a.tsv", "a.csv.gz"]),
    ends=st.sampled_from(["\r\n", "\n"]),
    bom=st.booleans(),
    delimiter=st.sampled_from(",;\t"),
)
def test_a_table_gives_back_what_was_written(
    tmp_path: Path, rows: list[tuple[str, str]], name: str, ends: str, bom: bool, delimiter: str
):
    content = [["one", "text"], *([*row] for row in rows)]
    options: dict[str, Any] = {
        "delimiter": "\t" if "tsv" in name else delimiter,
        "lineterminator": ends,
        "quoting": csv.QUOTE_ALL,
    }
    path = table(tmp_path / name, content, **options)
    if bom and path.suffix != ".gz":
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert [values for _, values in records(path, ("text", "one"))] == [(b, a) for a, b in rows]


@here
@given(values=st.lists(text, min_size=1, max_size=8))
def test_every_kind_of_record_gives_the_same_documents(tmp_path: Path, values: list[str]):
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    table(tmp_path / "a.csv", [["id", "text"], *([str(i), value] for i, value in enumerate(values))])
    lines = "".join(json.dumps({"id": i, "text": value}) + "\n" for i, value in enumerate(values))
    (tmp_path / "a.jsonl").write_text(lines, encoding="utf-8")
    parquet.write_table(pa.table({"id": list(range(len(values))), "text": values}), tmp_path / "a.parquet")
    with (tmp_path / "a.parquet").open("rb") as plain, gzip.open(tmp_path / "b.parquet.gz", "wb") as packed:
        shutil.copyfileobj(plain, packed)
    expected = [value for value in values if value]
    for name in ("a.csv", "a.jsonl", "a.parquet", "b.parquet.gz"):
        if expected:
            assert [d.text for d in documents(tmp_path / name)] == expected
        else:
            with pytest.raises(UserError, match="is empty"):
                list(documents(tmp_path / name))


def test_lines_are_counted_through_quoted_newlines(tmp_path: Path):
    (tmp_path / "a.csv").write_text('id,text\n1,"a\nb"\n\n2,c\n3\n')
    read = records(tmp_path / "a.csv", ("text",))
    assert [next(read), next(read)] == [(2, ("a\nb",)), (5, ("c",))]
    with pytest.raises(UserError, match=r"a\.csv, line 6, has 1 field, and the header has 2"):
        next(read)


def test_a_field_may_be_large_and_the_limit_stays_as_it_was(tmp_path: Path):
    before = csv.field_size_limit()
    large = "word " * 60_000
    table(tmp_path / "a.csv", [["text"], [large], ["small"]])
    found = list(documents(tmp_path / "a.csv"))
    assert "".join(d.text for d in found) == large + "small"
    assert [d.last for d in found] == [False, False, True, True]
    assert csv.field_size_limit() == before


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "id,Text\n1,x\n", r"a\.csv has no field 'text': did you mean 'Text'\? It has 'id', 'Text'\."),
        ("a.tsv", "a\tb\nx\ty\n", r"a\.tsv has no field 'text': choose from 'a', 'b'\."),
        ("a.csv", "text,text\n1,x\n", "has 2 fields called 'text'"),
        ("a.csv", 'text\n"never closed\nx\n', r"a\.csv, line 2, can't be read: unexpected end of data"),
        ("a.csv", 'text\nfine\n"a "quote" inside"\n', r"a\.csv, line 3, can't be read: .*must be doubled"),
        ("a.csv", b"text\nfine\n\xff\n", r"a\.csv, line 3, is not UTF-8 text: byte 10 "),
        ("a.csv", "", "is empty"),
        ("a.csv", "text\n", "is empty"),
        ("a.parquet", "not parquet", r"a\.parquet .*(not a whole parquet file|can't be read)"),
    ],
)
def test_a_faulty_table_is_named(tmp_path: Path, name: str, content: str | bytes, message: str):
    if "parquet" in name:
        pytest.importorskip("pyarrow")
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=message) as error:
        list(documents(tmp_path / name))
    assert "\n" not in str(error.value)


def test_faulty_parquet_is_named(tmp_path: Path):
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    path = tmp_path / "a.parquet"
    parquet.write_table(pa.table({"id": [1, 2], "txt": ["a", None], "in": [{"de": "x"}, {"de": "y"}]}), path)
    with pytest.raises(UserError, match="has no field 'text': did you mean 'txt'"):
        list(documents(path))
    with pytest.raises(UserError, match=r"a\.parquet has no text in its field 'id': that is of type int"):
        list(documents(path, "id"))
    assert list(records(path, ("txt", "in.de"))) == [(1, ("a", "x")), (2, ("", "y"))]
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(UserError, match=r"a\.parquet"):
        list(documents(path, "txt"))


def test_one_module_reads_the_formats_of_records():
    readers = {"sentences", "table_rows", "json_records", "open_parquet", "parquet_rows"}
    root = Path(af.__file__).parent
    found = {
        path.relative_to(root).as_posix()
        for path in root.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom) and readers & {each.name for each in node.names}
    }
    assert found == {"data/rows.py"}


def test_nested_fields(tmp_path: Path):
    line = {"translation": {"de": "eins", "en": "one"}, "a.b": "literal", "a": {"b": "inner"}}
    (tmp_path / "a.jsonl").write_text(json.dumps(line))
    assert [v for _, v in records(tmp_path / "a.jsonl", ("translation.de", "a.b"))] == [("eins", "literal")]
    with pytest.raises(UserError, match=r"has no field 'translation\.fr'"):
        list(records(tmp_path / "a.jsonl", ("translation.fr",)))
