from __future__ import annotations

import io
import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anyformer.data.formats import json_records as module
from anyformer.data.formats.json_records import json_records
from anyformer.data.input_files import opened
from anyformer.errors import UserError

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    max_leaves=6,
)
rows = st.lists(st.dictionaries(text, values, max_size=3), max_size=5)


def read(content: str | bytes, kind: str = ".json", limit: int = 10_000) -> tuple[str, list[tuple[int, Any]]]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"a{kind}")
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        with opened(path) as file:
            counted, records = json_records(file, path, limit, kind, "text")
            return counted, list(records)


@settings(max_examples=150)
@given(
    rows=rows,
    indent=st.sampled_from([None, 0, 2]),
    wrap=st.sampled_from(["array", "data", "last"]),
    bom=st.booleans(),
    block=st.sampled_from([1, 3, 50, 1 << 18]),
    ascii_only=st.booleans(),
)
def test_a_document_is_read_as_json_reads_it(
    rows: list[Any], indent: int | None, wrap: str, bom: bool, block: int, ascii_only: bool
):
    value = {"array": rows, "data": {"data": rows}, "last": {"version": 12.5, "of": {"data": []}, "data": rows}}[wrap]
    if wrap == "last" and indent is None:
        indent = 2
    content = json.dumps(value, indent=indent, ensure_ascii=ascii_only) + "\n"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_BLOCK", block)
        found = read(b"\xef\xbb\xbf" * bom + content.encode())
    assert found == ("row", list(enumerate(rows, start=1)))


@settings(max_examples=50)
@given(rows=rows)
def test_an_object_a_line_is_read_in_both_kinds_of_files(rows: list[Any]):
    content = "".join(json.dumps(row) + "\n\n" for row in rows)
    expected = [(2 * index + 1, row) for index, row in enumerate(rows)]
    for kind in (".json", ".jsonl"):
        counted, found = read(content, kind)
        if not (kind == ".json" and rows and isinstance(rows[0].get("data"), list)):
            assert (counted, found) == ("line", expected)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('[{"a": 1}, {"a" 2}]', r"a\.json is not JSON: Expecting ':' delimiter in line 1\."),
        ('[{"a": 1},\n{"a": 1}\n', r"a\.json is not JSON: expecting ',' or ']', where the file ends, in line 3"),
        ('[{"a": 1}\n{"a": 1}]', r"expecting ',' or ']', where there is '\{', in line 2"),
        ('[{"a": "never closed', "is not JSON: Unterminated string"),
        ('[{"a": 1}] more', "is not JSON: there is more after its end in line 1"),
        ('[{"a": 1}, 3]', r'a\.json, row 2, is no record: each must be like \{"text": "\.\.\."\}\.'),
        ("[{" + '"a": ' + "9" * 5000 + "}]", r"row 1, can't be read: Exceeds the limit \(4300 digits\)"),
        ('[{"a": ' + "[" * 100_000, r"row 1, (is nested too deeply|has more than)"),
        ('[{"a": "' + "x" * 60_000 + '"}]', "row 1, has more than 10,000 bytes"),
        ('[{"a": "' + "é" * 6_000 + '"}]', "row 1, has more than 10,000 bytes"),
        ('{\n"a": 1\n}', r"a\.json holds one object: records are an array of objects"),
        ('{\n"data": {"a": 1}\n}', "holds one object"),
        ('{\n"data": [{"a": 1}]\n', "expecting ',' or '}', where the file ends"),
        ('{\n"data": [{"a": 1}] 3}', "expecting ',' or '}', where there is '3'"),
        ('{\n"data": [{"a": 1}],}', "expecting a name in quotes in line 2"),
        ("{\n}", "holds one object"),
        ('{\n"data": [],\n"more": "' + "x" * 60_000 + '"}', "row 1, has more than 10,000 bytes"),
        ("{\n3: 1}", "expecting a name in quotes in line 2"),
        ('{"a": 1}\n{"a": \n', r"a\.json, line 2, is not JSON"),
        (b'[{"a": "\xff"}]', r"a\.json, line 1, is not UTF-8 text: byte 8 can't"),
        (b'{"a": 1}\n{"a": "\xff"}', r"a\.json, line 2, is not UTF-8 text: byte 16 can't"),
        ("3\n", "line 1, is no record"),
    ],
)
def test_faults_are_named(content: str | bytes, message: str):
    with pytest.raises(UserError, match=message) as error:
        read(content)
    assert "\n" not in str(error.value)


class Watched(io.BytesIO):
    """A file that counts what is read of it."""

    taken = 0

    def read(self, size: int | None = -1) -> bytes:
        found = super().read(size)
        self.taken += len(found)
        return found


def test_no_more_than_a_record_is_in_memory(monkeypatch: pytest.MonkeyPatch):
    file = Watched(json.dumps([{"text": "x" * 1000}] * 5000).encode())
    _, records = json_records(file, Path("a.json"), 100_000, ".json", "text")
    next(records)
    assert file.taken < 500_000
    assert sum(1 for _ in records) == 4999
    monkeypatch.setattr(module, "_BLOCK", 1000)
    file = Watched(b'[{"a": "' + b"x" * 1_000_000)
    _, records = json_records(file, Path("a.json"), 10_000, ".json", "text")
    with pytest.raises(UserError, match="row 1, has more than 10,000 bytes"):
        next(records)
    assert file.taken < 50_000
