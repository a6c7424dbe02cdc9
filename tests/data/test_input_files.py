"""What a small file may ask of the program: bounded memory, whatever becomes of it when it is decompressed."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import anyformer as af
from anyformer.console import Console
from anyformer.data import input_files
from anyformer.data.disk_cache import Cache
from anyformer.data.documents import documents
from anyformer.data.formats import text_lines
from anyformer.data.input_files import NotUTF8Error, find_fault
from anyformer.data.materialize import read_rows
from anyformer.data.rows import records
from anyformer.errors import UserError
from anyformer.finetuning.config import FinetuneConfig
from anyformer.training.config import TrainConfig
from anyformer.training.prepare import prepare

LIMIT = 1000
FITS, LARGE = "a" * (LIMIT - 100), "a" * (LIMIT + 1)


def jsonl(path: Path, texts: list[str]) -> Path:
    path.write_text("".join(f'{{"text": "{text}"}}\n' for text in texts), encoding="utf-8")
    return path


def table(path: Path, texts: list[str]) -> Path:
    held = io.StringIO(newline="")
    csv.writer(held, quoting=csv.QUOTE_ALL).writerows([["text"], *([text] for text in texts)])
    path.write_text(held.getvalue(), encoding="utf-8", newline="")
    return path


def parquet(path: Path, texts: list[str], compression: str = "zstd") -> Path:
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(pa.table({"text": texts}), path, compression=compression, write_statistics=False)
    return path


@pytest.mark.parametrize(
    ("write", "name", "where"),
    [
        (jsonl, "a.jsonl", "line 3"),
        (table, "a.csv", "line 4"),
        (parquet, "a.parquet", "row 3"),
    ],
)
def test_a_record_has_a_limit_that_can_be_raised(
    tmp_path: Path, write: Callable[[Path, list[str]], Path], name: str, where: str
):
    for large in (LARGE, "é" * (LIMIT // 2 + 1), "a\\n" * LIMIT if write is jsonl else "a\n" * LIMIT):
        path = write(tmp_path / name, [FITS, FITS, large, "b"])
        found = records(path, ("text",), LIMIT)
        assert [next(found)[1][0], next(found)[1][0]] == [FITS, FITS]
        with pytest.raises(UserError, match=rf"{where}, has more than 1,000 bytes: .*raise --max-record-bytes"):
            next(found)
        assert len(list(records(path, ("text",), 10 * LIMIT))) == 4


def test_a_line_of_text_has_the_same_limit(tmp_path: Path):
    path = tmp_path / "a.txt"
    path.write_text(f"{FITS}\n{FITS}\n{LARGE}")
    found = text_lines(path, LIMIT)
    assert [next(found), next(found)] == [FITS, FITS]
    with pytest.raises(UserError, match="line 3, has more than 1,000 bytes"):
        next(found)
    assert len(list(text_lines(path))) == 3


def _zstandard(content: bytes) -> bytes:
    return pytest.importorskip("zstandard").compress(content)


@pytest.mark.parametrize(("kind", "compress"), [("gz", gzip.compress), ("zst", _zstandard)])
@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.txt"])
def test_what_is_decompressed_is_never_in_memory_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, kind: str, compress: Callable[[bytes], bytes]
):
    begin = b'{"text": "' if name == "a.jsonl" else b'text\n"'
    content = begin + b"a" * 30_000_000
    path = tmp_path / f"{name}.{kind}"
    path.write_bytes(compress(content))
    tracemalloc.start()
    try:
        with pytest.raises(UserError, match="more than 100,000 bytes"):
            list(text_lines(path, 100_000) if name == "a.txt" else records(path, ("text",), 100_000))
        assert tracemalloc.get_traced_memory()[1] < 5_000_000
    finally:
        tracemalloc.stop()


def test_a_file_that_grows_out_of_all_proportion(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "a.txt.zst"
    path.write_bytes(_zstandard(b"abcdefg\n" * 500_000))
    assert sum(len(document.text) for document in documents(path)) == 4_000_000
    monkeypatch.setattr(input_files, "_EXPANDED_BYTES", 1_000_000)
    with pytest.raises(UserError, match="more than 200 times as large when it is decompressed"):
        list(documents(path))


@pytest.mark.parametrize(("size", "rows"), [(900_000, 10_000), (0, 100_000)])
def test_rows_of_parquet_that_are_made_of_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int, rows: int
):
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    texts = pa.DictionaryArray.from_arrays(pa.array([0] * rows, pa.int32()), pa.array(["a" * size]))
    path = tmp_path / "a.parquet"
    parquet.write_table(pa.table({"text": texts}), path, compression="zstd", store_schema=False)
    assert path.stat().st_size < 1000
    monkeypatch.setattr(input_files, "_EXPANDED_BYTES", 1_000_000)
    whole, pool = pa.default_memory_pool(), pa.proxy_memory_pool(pa.default_memory_pool())
    pa.set_memory_pool(pool)
    try:
        with pytest.raises(UserError, match="more than 200 times as large when it is decompressed"):
            list(records(path, ("text",)))
    finally:
        pa.set_memory_pool(whole)
    assert pool.max_memory() < 30_000_000


@pytest.mark.parametrize("name", ["a.parquet", "a.jsonl.gz", "a.csv.gz", "a.conll.gz"])
@pytest.mark.parametrize("reads_examples", [False, True])
def test_rows_of_nothing_count_what_they_take(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, reads_examples: bool
):
    """A few bytes of a compressed file stand for thousands of rows, and each of them takes time and memory."""
    path, count = tmp_path / name, 40_000
    if name == "a.parquet":
        pa = pytest.importorskip("pyarrow")
        from pyarrow import parquet

        parquet.write_table(pa.table({"text": pa.nulls(count, pa.string())}), path, compression="zstd")
    else:
        row = {"a.jsonl.gz": '{"text": null}\n', "a.csv.gz": "b\n", "a.conll.gz": "a O\n\n"}[name]
        path.write_bytes(gzip.compress((("text\n" if name == "a.csv.gz" else "") + row * count).encode()))
    monkeypatch.setattr(input_files, "_EXPANDED_BYTES", 1_000_000)
    if name == "a.conll.gz" and not reads_examples:
        return  # no text to be trained on
    read = 0
    with pytest.raises(UserError, match="200 times as large when it is decompressed"):  # noqa: PT012
        for _ in read_rows([str(path)]) if reads_examples else records(path, ("text",)):
            read += 1
    assert 1000 < read <= 1_000_000 / input_files.ROW_BYTES


def test_a_deep_record(tmp_path: Path):
    (tmp_path / "a.jsonl").write_text('{"text": ' + "[" * 100_000)
    with pytest.raises(UserError, match=r"a\.jsonl, line 1, is nested too deeply"):
        list(records(tmp_path / "a.jsonl", ("text",)))


def test_a_table_of_many_columns_is_refused_at_once(tmp_path: Path):
    (tmp_path / "a.csv").write_text(",".join(f"column{i}" for i in range(200_000)) + "\n")
    with pytest.raises(UserError, match="has no field 'text'") as error:
        list(records(tmp_path / "a.csv", ("text",)))
    assert len(str(error.value)) < 20_000


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="named pipes as POSIX has them")
def test_a_named_pipe_is_refused(tmp_path: Path):
    os.mkfifo(tmp_path / "a.txt")
    with pytest.raises(UserError, match=r"a\.txt is not a file but a named pipe"):
        list(documents(tmp_path / "a.txt"))


here = settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
WESTERN = "abcdefghijklmnopqrstuvwxyz ,.!?äöüßéèñç"
plain = st.text("abcdefghij ", min_size=3, max_size=20)
accented = st.builds("{}café {}".format, plain, plain)


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def rendered(name: str, lines: list[str]) -> str:
    """The lines as texts of a file of this kind."""
    if "jsonl" in name:
        return "".join(json.dumps({"text": line}, ensure_ascii=False) + "\n" for line in lines)
    return "\n".join(["text", *lines, ""]) if "csv" in name else "".join(f"{line}\tO\n" for line in lines)


@here
@given(
    before=st.lists(plain, max_size=5),
    bad=accented,
    after=st.lists(accented, max_size=3),
    encoding=st.sampled_from(["latin-1", "utf-16", "utf-16-le", "utf-16-be"]),
    name=st.sampled_from(["a.jsonl", "a.csv", "a b.csv", "a.conll", "a.csv.gz"]),
)
def test_the_first_line_is_named_and_encoding_reads_the_file(
    tmp_path: Path, before: list[str], bad: str, after: list[str], encoding: str, name: str
):
    lines = [each.strip().replace(" ", "_") or "x" for each in (*before, bad, *after)]
    path = write(tmp_path / name, rendered(name, lines).encode(encoding))
    cache = Cache(tmp_path / "cache")

    def read(given: str | None) -> list[list[str]] | list[str]:
        rows = read_rows([str(path)], cache, encoding=given)
        return [row.values.get("text") or row.values["tokens"] for row in rows]

    expected = [lines] if "conll" in name else lines
    if encoding != "utf-16":  # whose byte-order mark says it
        with pytest.raises(NotUTF8Error) as error:
            read(None)
        place = 1 if encoding.startswith("utf") else len(before) + 1 + ("csv" in name)
        said = str(error.value)
        assert f"{path}, line {place}, is not UTF-8 text: byte " in said
        assert f"--encoding {encoding if encoding.startswith('utf') else 'cp1252'}, or" in said
        assert "iconv" not in said
        with pytest.raises(UserError, match="None of the files is UTF-8 text"):
            read("skip")
    assert read(encoding) == (read(None) if encoding == "utf-16" else expected) == expected


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32"])
def test_a_byte_order_mark_says_the_encoding(tmp_path: Path, encoding: str):
    write(tmp_path / "a.csv", "text\ncafé\n".encode(encoding))
    row = next(read_rows([str(tmp_path)], Cache(tmp_path / "cache")))
    assert (row.values, str(row.location)) == ({"text": "café"}, f"{tmp_path / 'a.csv'}, line 2")


def test_a_folder_names_all_files_that_are_not_utf8_and_goes_on_without_them(tmp_path: Path):
    folder, cache = tmp_path / "texts", Cache(tmp_path / "cache")
    folder.mkdir()
    for number in range(14):
        write(folder / f"{number:02}.txt", (20 * "café ").encode("latin-1" if number % 14 else "utf-8"))
    with pytest.raises(NotUTF8Error, match=r"^13 of 14 files are not UTF-8 text: .*01\.txt, .*10\.txt, and 3 more\. "):
        list(read_rows([str(folder)], cache))
    assert [row.values["text"] for row in read_rows([str(folder)], cache, encoding="skip")] == [20 * "café "]
    assert [row.values["text"] for row in read_rows([str(folder)], cache, encoding="cp1252")] == [20 * "café "] * 14
    with pytest.raises(UserError, match=r"01\.txt is not shift-jis text, either: give another --encoding, or go on"):
        list(read_rows([str(folder)], cache, encoding="shift-jis"))
    config = af.preset("gpt2-nano")
    for encoding, count in (("skip", 1), ("latin-1", 14)):
        values: Any = {"data": (str(folder),), "cache": tmp_path / "cache", "encoding": encoding, "tokenizer": "char"}
        options = TrainConfig(preset="gpt2-nano", model=config, context=2, batch_size=1, **values).complete()
        data = prepare(options, Console(quiet=True))
        assert data.summary[0].endswith(f" in {count} file{'s' * (count > 1)}")


@pytest.mark.parametrize("name", ["utf-9", "base64", "undefined"])
def test_an_unknown_encoding_is_refused(name: str):
    with pytest.raises(UserError, match=f"--encoding {name} is unknown: write a name such as cp1252"):
        FinetuneConfig(base="x", encoding=name)


@pytest.mark.parametrize(
    ("content", "line", "encoding"),
    [
        (b"fine\n\x93quoted\x94\n", 2, "cp1252"),
        ("строка\n".encode("koi8-r"), 1, None),
        ("日本語\n".encode("shift-jis"), 1, None),
        (b"a\n\0\x01\xff\xfe\x00\n", 2, None),
        ("ä".encode()[:1], 1, None),
        ("x\n".encode("utf-16-le") * 3, 1, "utf-16-le"),
    ],
)
def test_the_encoding_of_other_files(tmp_path: Path, content: bytes, line: int, encoding: str | None):
    with write(tmp_path / "a.txt", content).open("rb") as file:
        fault = find_fault(file)
    assert fault is not None
    assert (fault.line, fault.encoding) == (line, encoding)


@here
@given(text=st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])), part=st.integers(1, 5))
def test_a_file_that_is_utf8_has_no_fault(tmp_path: Path, text: str, part: int):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("anyformer.data.input_files._PART", part)
        with write(tmp_path / "a.txt", text.encode()).open("rb") as file:
            assert find_fault(file) is None


def test_a_table_with_semicolons_is_read(tmp_path: Path):
    path = tmp_path / "a.csv"
    with path.open("w", newline="") as file:
        csv.writer(file, delimiter=";").writerows([["text", "label"], ["good, really", "1,5"], ["a;b", "2"]])
    found = [row.values for row in read_rows([str(path)])]
    assert found == [{"text": "good, really", "label": "1,5"}, {"text": "a;b", "label": "2"}]
