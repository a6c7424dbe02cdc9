"""Shards of a corpus have its documents, wherever they begin."""

from __future__ import annotations

import json
from collections.abc import Iterable
from itertools import chain, pairwise
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from anyformer.data.corpus import Corpus
from anyformer.data.documents import Document, documents, shards
from anyformer.data.token_files import join, tokenize_splits
from anyformer.errors import UserError
from tests.data.test_token_files import trained

here = settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
few = settings(max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture])
texts = st.lists(st.sampled_from(["one ", "two\n", "\n", "  \u00e9", "\n\u2003x", "\n\u20ac"]), max_size=40).map(
    "".join
)
files = st.lists(
    st.tuples(
        st.sampled_from(["txt", "jsonl", "parquet", "csv"]),
        st.lists(texts, max_size=30),
        st.sampled_from(["", "\ufeff"]),
        st.sampled_from(["\n", "\r\n", "\n \n"]),
    ),
    min_size=1,
    max_size=4,
)
Files = list[tuple[str, list[str], str, str]]


def _write(folder: Path, given_files: Files) -> list[Path]:
    paths: list[Path] = []
    for index, (kind, own, mark, end) in enumerate(given_files):
        path = folder / f"{index}.{kind}"
        if kind == "parquet":
            parquet.write_table(pa.table({"text": pa.array(own, pa.string())}), path, row_group_size=3)
        else:
            lines = {
                "txt": own,
                "jsonl": [json.dumps({"text": text}) + end for text in own],
                "csv": ["text\n", *(f'"{text}"\n' for text in own)],
            }
            path.write_bytes((mark + "".join(lines[kind])).encode())
        paths.append(path)
    return paths


def _joined(each: list[Document]) -> dict[tuple[Path, int | None], str]:
    joined: dict[tuple[Path, int | None], str] = {}
    for document in each:
        joined[document.path, document.line] = joined.get((document.path, document.line), "") + document.text
    return joined


@here
@given(given_files=files, size=st.sampled_from([7, 30, 100, 1000]))
def test_shards_are_the_whole(tmp_path: Path, given_files: Files, size: int):
    paths = _write(tmp_path, given_files)
    whole = list(chain.from_iterable(shards(paths)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("anyformer.data.documents.SHARD", size)
        each = [list(shard) for shard in shards(paths)]
        again = [document for shard in shards(paths) for document in shard]
    together = list(chain.from_iterable(each))
    assert again == together
    assert _joined(together) == _joined(whole)
    ends = [[(document.path, document.line) for document in own if document.last] for own in (together, whole)]
    assert ends[0] == ends[1]
    for shard in each:
        for before, after in pairwise(shard):
            assert before.last or before.path == after.path


@few
@given(given_files=files, size=st.sampled_from([7, 30, 100, 1000]))
def test_parts_of_a_corpus_are_tokenized_as_the_whole(tmp_path: Path, given_files: Files, size: int):
    paths = _write(tmp_path, given_files)
    if not [*chain.from_iterable(shards(paths))]:
        return
    whole = Corpus(paths)

    def write(items: Iterable[tuple[bool, Document]], name: str, more: bool = False) -> list[Path]:
        labeled = (("ab"[held_out], document) for held_out, document in items)
        written = {split: tmp_path / f"{name}{split}" for split in "ab"}
        tokenize_splits(labeled, trained("bpe:300"), written, more=more)
        return [*written.values()]

    expected = write(whole.labeled(), "whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("anyformer.data.documents.SHARD", size)
        corpus = Corpus(paths)
        parts = [write(part, str(index), more=True) for index, part in enumerate(corpus.parts())]
    assert (corpus.split.characters, corpus.split.count) == (whole.split.characters, whole.split.count)
    for own, target in zip(zip(*parts, strict=True), expected, strict=True):
        join(own, tmp_path / "joined", trained("bpe:300").separator)
        assert (tmp_path / "joined").read_bytes() == target.read_bytes()


def test_a_fault_in_a_shard_names_its_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    lines = ['{"text": "x"}'] * 50
    lines[33] = "{"
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    monkeypatch.setattr("anyformer.data.documents.SHARD", 100)
    with pytest.raises(UserError, match=r"a\.jsonl, line 34, is not JSON"):
        list(documents(tmp_path))
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "x"}\n' * 33 + b'{"text": "\xff"}\n' + b'{"text": "x"}\n' * 9)
    with pytest.raises(UserError, match=r"a\.jsonl, line 34, is not UTF-8"):
        list(documents(tmp_path))


def test_a_corpus_whose_files_changed_has_no_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("anyformer.data.documents.SHARD", 10)
    (tmp_path / "a.txt").write_text("one\n" * 10)
    corpus = Corpus(tmp_path)
    assert len(corpus.parts()) == 4
    (tmp_path / "a.txt").write_text("one\n" * 30)
    with pytest.raises(UserError, match="changed while it was being read"):
        corpus.parts()


def test_a_file_is_read_as_far_as_its_texts_are_asked_for(tmp_path: Path) -> None:
    """Reading all of it takes half an hour: it has a terabyte, nearly all of it one line without a byte on disk."""
    path = tmp_path / "sparse.jsonl"
    path.write_text('{"text": "first"}\n', encoding="utf-8")
    with path.open("r+b") as file:
        file.truncate(1 << 40)
    texts = documents([path])
    assert next(texts).text == "first"
    with pytest.raises(UserError, match="line 2, has more than 16,000,000 bytes"):
        next(texts)
