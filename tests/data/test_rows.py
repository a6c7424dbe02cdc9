from __future__ import annotations

import ast
import csv
import gzip
import io
import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import anyformer as af
from anyformer.data import input_files
from anyformer.data.disk_cache import Cache
from anyformer.data.documents import documents
from anyformer.data.materialize import read_rows, row_files
from anyformer.data.rows import records
from anyformer.errors import UserError

here = settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
text = st.text(st.characters(exclude_characters="\0\ufeff", exclude_categories=["Cs"]), max_size=20)


def write(path: Path, content: str | bytes) -> str:
    data = content.encode() if isinstance(content, str) else content
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return str(path)


def read(*paths: str | Path, **options: Any) -> list[Any]:
    return [row.values for row in read_rows([str(path) for path in paths], **options)]


@here
@given(
    rows=st.lists(
        st.fixed_dictionaries(
            {
                "messages": st.lists(st.fixed_dictionaries({"role": text, "content": text}), max_size=3),
                "label": st.integers(-5, 5),
                "score": st.floats(-1, 1),
                "ok": st.booleans(),
            }
        ),
        min_size=1,
        max_size=4,
    )
)
def test_every_kind_of_file_gives_the_same_structure(tmp_path: Path, rows: list[dict[str, Any]]):
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    lines = "".join(json.dumps(row) + "\n" for row in rows)
    paths = [
        write(tmp_path / "a.jsonl", lines),
        write(tmp_path / "b.jsonl.gz", lines),
        write(tmp_path / "c.json", lines),
        write(tmp_path / "d.json", json.dumps(rows, indent=1)),
        write(tmp_path / "e.json.gz", json.dumps({"data": rows})),
    ]
    if any(row["messages"] for row in rows):
        parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "f.parquet")
        paths.append(str(tmp_path / "f.parquet"))
    for path in paths:
        assert read(path) == rows


def test_the_place_of_a_row_is_kept(tmp_path: Path):
    table, array = write(tmp_path / "a.csv", 'a,b\n1,"x\ny"\n2,z\n'), write(tmp_path / "a.json", '[{"a": 1}, {"a": 2}]')
    found = [(str(row.location), row.values) for row in read_rows([table, array])]
    assert found == [
        (f"{table}, line 2", {"a": "1", "b": "x\ny"}),
        (f"{table}, line 4", {"a": "2", "b": "z"}),
        (f"{array}, row 1", {"a": 1}),
        (f"{array}, row 2", {"a": 2}),
    ]


def test_a_table_without_a_header(tmp_path: Path):
    table = write(tmp_path / "a.csv", "x,y,5.0\nz,w,3\n")
    columns = ("sentence1", "sentence2", "score")
    assert read(table, columns=columns)[1] == {"sentence1": "z", "sentence2": "w", "score": "3"}
    with pytest.raises(UserError, match=r"a\.csv, line 1, has 3 fields, and the columns that were named are 2"):
        read(table, columns=("a", "b"))
    with pytest.raises(UserError, match="has 2 fields called 'a': give them different names"):
        read(table, columns=("a", "a", "b"))
    assert read(write(tmp_path / "b.csv", ",a,\n1,2,3\n")) == [{"": "3", "a": "2"}]
    semicolons = write(tmp_path / "c.csv", "so, so;1,5\nyes, and no;2\n")
    assert read(semicolons, columns=["text", "label"])[0] == {"text": "so, so", "label": "1,5"}


def test_sentences_texts_and_parallel_lines(tmp_path: Path):
    assert read(write(tmp_path / "a.conll", "a\tO\nb\tB-x\n\nc\tO\n")) == [
        {"tokens": ["a", "b"], "ner_tags": ["O", "B-x"]},
        {"tokens": ["c"], "ner_tags": ["O"]},
    ]
    assert read(write(tmp_path / "a.txt", "\ufeffone\n\ntwo")) == [{"text": "one\n\ntwo"}]
    assert read(write(tmp_path / "empty.txt", "")) == []
    source, target = write(tmp_path / "a.en.gz", "one\n\ntwo\n"), write(tmp_path / "a.de", "eins\n\nzwei\n")
    pairs = [{"source": "one", "target": "eins"}, {"source": "two", "target": "zwei"}]
    assert read(f"{source},{target}") == pairs
    write(tmp_path / "a.de", "eins\n")
    with pytest.raises(UserError, match=r"has 3 lines and .* has 1"):
        read(f"{source},{target}")
    with pytest.raises(UserError, match=r"There is no file .*a\.fr to take pairs from"):
        read(f"{source},{tmp_path / 'a.fr'}")
    assert read(write(tmp_path / "a,b.txt", "a name with a comma")) == [{"text": "a name with a comma"}]


def test_folders_and_globs(tmp_path: Path):
    write(tmp_path / "a.conll", "a\tO\n")
    write(tmp_path / "b.jsonl", '{"x": 1}\n')
    write(tmp_path / "settings.json", "{}")
    assert read(tmp_path) == [{"tokens": ["a"], "ner_tags": ["O"]}, {"x": 1}]
    assert read(tmp_path / "*.jsonl", tmp_path / "b.jsonl") == [{"x": 1}]
    with pytest.raises(UserError, match=r"is not a kind of file that can be read: use \.jsonl, .*\.conll"):
        read(write(tmp_path / "a.png", ""))
    with pytest.raises(UserError, match="No data was given"):
        read()


@pytest.mark.parametrize(
    ("content", "rows"),
    [
        (b'\xef\xbb\xbf {"a": 1}\n{"a": 2}\n', [{"a": 1}, {"a": 2}]),
        (b'\n[{"a": 1}]', [{"a": 1}]),
        (b"a text", [{"text": "a text"}]),
    ],
)
def test_standard_input_is_what_it_looks_like(
    tmp_path: Path, content: bytes, rows: list[Any], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(content)))
    (file,) = row_files(["-"], Cache(tmp_path))
    found = list(file.rows((), 1000))
    assert [row.values for row in found] == rows
    assert str(found[0].location.path) == "standard input"


def test_parquet_keeps_names_of_classes_and_leaves_nulls_inside_objects_out(tmp_path: Path):
    datasets = pytest.importorskip("datasets")
    names = datasets.ClassLabel(names=["neg", "pos"])
    features = datasets.Features(
        {
            "label": names,
            "tags": datasets.List(names),
            "m": datasets.List({"role": datasets.Value("string"), "name": datasets.Value("string")}),
        }
    )
    rows = {"label": [1, -1], "tags": [[0, 1], []], "m": [[{"role": "a", "name": None}], None]}
    datasets.Dataset.from_dict(rows, features).to_parquet(tmp_path / "a.parquet")
    first, second = read_rows([str(tmp_path / "a.parquet")])
    assert first.values == {"label": "pos", "tags": ["neg", "pos"], "m": [{"role": "a"}]}
    assert second.values["label"] is None
    assert first.classes["label"] == ("neg", "pos")


def test_a_class_without_a_name_is_named(tmp_path: Path):
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    note = {"info": {"features": {"label": {"_type": "ClassLabel", "names": ["neg", "pos"]}}}}
    schema = pa.schema([("label", pa.int64())], metadata={"huggingface": json.dumps(note)})
    parquet.write_table(pa.table({"label": [0, 7]}, schema=schema), tmp_path / "a.parquet")
    with pytest.raises(UserError, match=r"a\.parquet, row 2, has class 7 in its column 'label', .* for 0 to 1 only"):
        read(tmp_path / "a.parquet")


@pytest.mark.filterwarnings("ignore")
def test_a_data_set_of_the_hub_is_read_whole_and_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    datasets = pytest.importorskip("datasets")
    pytest.importorskip("zstandard")
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["z", "a"])})
    rows = datasets.Dataset.from_dict({"text": ["x", "y"], "label": [0, 1]}, features)
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: rows.to_iterable_dataset())
    cache = Cache(tmp_path)
    for _ in range(2):
        (file,) = row_files(["hf:some/set"], cache)
        found = list(file.rows((), 1000))
        assert [(str(row.location), row.values) for row in found] == [
            ("hf:some/set, row 1", {"text": "x", "label": "z"}),
            ("hf:some/set, row 2", {"text": "y", "label": "a"}),
        ]
        assert found[0].classes == {"label": ("z", "a")}
        monkeypatch.setattr(datasets, "load_dataset", None)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", '{"a": {"b": ["\\ud800"]}}', r"a\.jsonl, line 1, holds half a character"),
        ("a.jsonl", '{"\\udfff": 1}', r"a\.jsonl, line 1, holds half a character"),
        ("a.jsonl", '{"a": ' + "[" * 150 + "]" * 150 + "}", r"a\.jsonl, line 1, is nested more than 100 levels"),
        ("a.jsonl", '{"a": "' + "x" * 2000 + '"}', r"a\.jsonl, line 1, has more than 1,000 bytes"),
        ("a.csv", "a\n" + "x" * 2000, r"a\.csv, line 2, has more than 1,000 bytes"),
        ("a.csv", ",".join(map(str, range(2001))), r"a\.csv has 2,001 columns, more than the 2,000 that data may have"),
        ("a.txt", "x" * 2000, r"a\.txt has more than 1,000 bytes, and a text file is one example"),
        ("a.txt", b"x\xff", r"a\.txt, line 1, is not UTF-8 text: byte 1"),
        ("a.txt", b"fine\nx\0", r"a\.txt, line 2, is not UTF-8 text: byte 6 is a NUL byte, which no text has\.$"),
    ],
)
def test_faults_are_named(tmp_path: Path, name: str, content: str | bytes, message: str):
    with pytest.raises(UserError, match=message):
        read(write(tmp_path / name, content), max_record_bytes=1000 if "," not in str(content) else 20_000)


def test_two_files_of_parallel_lines_are_given_as_one(tmp_path: Path):
    paths = [str(write(tmp_path / name, "a\n")) for name in ("train.en", "train.de")]
    with pytest.raises(UserError, match=r"given as one, with a comma: .*train\.en,.*train\.de\.$"):
        row_files(paths)
    assert len(row_files([",".join(paths)])) == 1


def test_parquet_is_read_within_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    path = tmp_path / "a.parquet"
    parquet.write_table(pa.table({"m": [[{"content": "x"}], [{"content": "x" * 2000}]]}), path)
    with pytest.raises(UserError, match=r"a\.parquet, row 2, has more than 1,000 bytes"):
        read(path, max_record_bytes=1000)
    parquet.write_table(pa.table({"m": [["x" * 1000] * 50] * 100}), path)
    monkeypatch.setattr(input_files, "_EXPANDED_BYTES", 100_000)
    with pytest.raises(UserError, match="times as large when it is decompressed"):
        read(path)


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
