from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from anyformer.data import token_files as module
from anyformer.data.documents import Document, documents
from anyformer.data.token_files import HEADER, TokenFile, join, tokenize, tokenize_splits
from anyformer.errors import UserError
from anyformer.tokenizer import Tokenizer

here = settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
few = settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])


@dataclass
class Points:
    """Code points as ids."""

    vocab_size: int = 0x110000
    separator: int | None = 0
    fingerprint: str = "points"

    def encode_batch(self, texts: Sequence[str], special: bool = True) -> list[list[int]]:
        assert not special
        return [[ord(c) for c in text] for text in texts]


def docs(*texts: str) -> list[Document]:
    return [Document(text, Path("a")) for text in texts]


def labeled(*texts: str) -> list[tuple[str, Document]]:
    return [("", document) for document in docs(*texts)]


@lru_cache
def trained(spec: str) -> Tokenizer:
    return Tokenizer.train(["one two three, two and one.\n" * 5, "def f(x):\n    return x\n"], spec)


pieces = st.lists(st.tuples(st.text(min_size=1, max_size=5), st.booleans()), max_size=20)


def joined(parts: list[tuple[str, bool]], separator: int | None) -> list[int]:
    expected: list[int] = []
    for index, (text, _) in enumerate(parts):
        if index and parts[index - 1][1] and separator is not None:
            expected.append(separator)
        expected += map(ord, text)
    return expected


@here
@given(parts=pieces, separator=st.sampled_from([None, 0]), at_once=st.integers(1, 30))
def test_ids_and_separators(tmp_path: Path, parts: list[tuple[str, bool]], separator: int | None, at_once: int):
    given_documents = [Document(text, Path("a"), last=last) for text, last in parts]
    done: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "CHUNK", at_once)
        file = tokenize(given_documents, Points(separator=separator), tmp_path / "t", progress=done.append)
    expected = joined(parts, separator)
    assert file.ids.dtype == np.uint32
    assert file.ids.tolist() == expected
    assert len(file) == len(expected) == file.header.tokens
    assert file.header.bytes == sum(len(text.encode()) for text, _ in parts)
    assert file.header.documents == sum(last for _, last in parts)
    assert sum(done) == sum(len(text) for text, _ in parts)


@here
@given(parts=st.lists(st.tuples(st.sampled_from("ab"), pieces)), at_once=st.integers(1, 30))
def test_parts_are_files_of_their_own(tmp_path: Path, parts: list[tuple[str, list[tuple[str, bool]]]], at_once: int):
    given_texts = [(name, text, last) for name, group in parts for text, last in group]
    both = [(name, Document(text, Path("a"), last=last)) for name, text, last in given_texts]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "CHUNK", at_once)
        tokenize_splits(both, Points(), {name: tmp_path / name for name in "ab"})
    for name in "ab":
        own = [(text, last) for label, text, last in given_texts if label == name]
        assert TokenFile.open(tmp_path / name).ids.tolist() == joined(own, 0)


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="Linux tells what is mapped")
def test_few_of_many_files_that_are_joined_are_mapped_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    texts = [f"text {number}" for number in range(8)]
    parts = [tmp_path / f"{number}.part" for number in range(len(texts))]
    for text, part in zip(texts, parts, strict=True):
        tokenize_splits([("a", Document(text, Path("a")))], Points(), {"a": part}, more=True)
    mapped: list[int] = []

    class Counting(TokenFile):
        @classmethod
        def open(cls, path: str | os.PathLike[str]) -> TokenFile:
            file = TokenFile.open(path)
            mapped.append(Path("/proc/self/maps").read_text().count(".part\n"))
            return file

    monkeypatch.setattr(module, "TokenFile", Counting)
    join(parts, tmp_path / "whole", 0)
    assert TokenFile.open(tmp_path / "whole").ids.tolist() == joined([(text, True) for text in texts], 0)
    assert 0 < max(mapped) <= 2


@few
@given(
    texts=st.lists(st.text(st.sampled_from("one two,.\n<|endoftext|>éß")), min_size=1, max_size=12),
    at_once=st.integers(1, 20),
    workers=st.integers(2, 3),
    spec=st.sampled_from(["bpe:300", "wordpiece:60", "unigram:40"]),
)
def test_workers_change_nothing(tmp_path: Path, texts: list[str], at_once: int, workers: int, spec: str):
    parts = [Document(text, Path("a"), last=index % 3 != 0) for index, text in enumerate(texts) if text]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "CHUNK", at_once)
        one = tokenize(parts, trained(spec), tmp_path / "one", workers=1)
        many = tokenize(parts, trained(spec), tmp_path / "many", workers=workers)
    assert one.path.read_bytes() == many.path.read_bytes()
    assert one.header.digest == many.header.digest


def test_no_more_is_read_ahead_than_the_workers_need(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "CHUNK", 10)
    read, written, ahead = 0, 0, 0

    def source() -> Iterator[tuple[str, Document]]:
        nonlocal read
        for _ in range(60):
            read += 1
            yield from labeled("one two three")

    for _ in module.encode_chunks(source(), trained("bpe:300"), 2):
        written += 1
        ahead = max(ahead, read - written)
    assert written == 60
    assert ahead <= 2


def test_what_can_not_be_encoded():
    with pytest.raises(UserError, match="The text can't be encoded: "):
        list(module.encode_chunks(labeled("\ud800"), trained("bpe:300"), 2))
    characters = Tokenizer.train(["abc"], "char")
    with pytest.raises(UserError, match="The character 'd'"):
        list(module.encode_chunks(labeled("abcd"), characters, 2))


@pytest.mark.parametrize(("size", "dtype"), [(65536, np.uint16), (65537, np.uint32)])
def test_the_width_follows_the_vocabulary(tmp_path: Path, size: int, dtype: type):
    file = tokenize(docs("a\uffff"), Points(vocab_size=size), tmp_path / "t")
    assert file.ids.dtype == dtype
    assert file.ids.tolist() == [97, 65535]
    again = TokenFile.open(tmp_path / "t")
    assert again.header == file.header
    assert again.header.vocab_size == size
    with pytest.raises(ValueError, match="read-only"):
        again.ids[0] = 1


def test_with_a_real_tokenizer(tmp_path: Path):
    for index, text in enumerate(["one\ntwo\n", "three €"]):
        (tmp_path / f"{index}.txt").write_text(text, encoding="utf-8")
    tokenizer = Tokenizer.train(documents(tmp_path), "bpe:300")
    file = tokenize(documents(tmp_path), tokenizer, tmp_path / "deep" / "t")
    assert tokenizer.decode(file.ids.tolist(), skip_special=False) == "one\ntwo\n<|endoftext|>three €"
    assert file.header.bytes == 8 + 9
    masked = Tokenizer.train(["one two"], "char", special="masked")
    assert masked.separator == masked.sep


def test_pieces_give_the_ids_of_the_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    text = "def f(x):\n    return x\n\n\n  # don't\n\n" * 40
    (tmp_path / "a.py").write_text(text)
    tokenizer = Tokenizer.train([text], "bpe:300")
    monkeypatch.setattr("anyformer.data.documents.PIECE", 100)
    assert len(list(documents(tmp_path / "a.py"))) > 10
    assert tokenize(documents(tmp_path), tokenizer, tmp_path / "t").ids.tolist() == tokenizer.encode(text)
    (tmp_path / "a.py").unlink()
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": text}))
    assert len(list(documents(tmp_path / "a.jsonl"))) > 10
    assert tokenize(documents(tmp_path), tokenizer, tmp_path / "t").ids.tolist() == tokenizer.encode(text)
    characters = Tokenizer.train(documents(tmp_path), "char")
    assert (characters.vocab_size, characters.eos) == (len(set(text)), None)


def test_the_digest_follows_the_ids(tmp_path: Path):
    first = tokenize(docs("hello"), Points(), tmp_path / "a").header.digest
    assert tokenize(docs("hello"), Points(), tmp_path / "b").header.digest == first
    assert tokenize(docs("hellp"), Points(), tmp_path / "b").header.digest != first


def test_a_failure_leaves_what_was_there(tmp_path: Path):
    tokenize(docs("old"), Points(), tmp_path / "t")

    def broken() -> Iterator[Document]:
        yield from docs("new")
        raise UserError("no more")

    with pytest.raises(UserError, match="no more"):
        tokenize(broken(), Points(), tmp_path / "t")
    assert TokenFile.open(tmp_path / "t").ids.tolist() == [ord(c) for c in "old"]
    assert [p.name for p in tmp_path.iterdir()] == ["t"]


def test_a_full_disk_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module.os, "fsync", full)
    with pytest.raises(UserError, match="can't be written: No space left"):
        tokenize(docs("a"), Points(), tmp_path / "t")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "content", [b"", b"{}", b"[1]", b"x" * 5000, b'{"format": "other"}'.ljust(HEADER), b"[" * HEADER]
)
def test_other_files_are_refused(tmp_path: Path, content: bytes):
    (tmp_path / "t").write_bytes(content)
    with pytest.raises(UserError, match="not a token file"):
        TokenFile.open(tmp_path / "t")


def test_missing_and_cut_off_files_are_refused(tmp_path: Path):
    with pytest.raises(UserError, match="can't be read"):
        TokenFile.open(tmp_path / "t")
    tokenize(docs("abc"), Points(), tmp_path / "t")
    (tmp_path / "t").write_bytes((tmp_path / "t").read_bytes()[:-1])
    with pytest.raises(UserError, match="cut off"):
        TokenFile.open(tmp_path / "t")


@pytest.mark.skipif(os.name != "posix", reason="named pipes as POSIX has them")
@pytest.mark.timeout(20)
def test_a_pipe_is_not_waited_for(tmp_path: Path):
    os.mkfifo(tmp_path / "t")
    with pytest.raises(UserError, match="not a token file"):
        TokenFile.open(tmp_path / "t")


@pytest.mark.parametrize(
    ("field", "value"),
    [("tokens", "3"), ("tokens", -1), ("tokens", 3.0), ("tokens", True), ("bytes", None), ("digest", 1), ("dtype", [])],
)
def test_a_header_with_values_of_other_types_is_refused(tmp_path: Path, field: str, value: object):
    path = tmp_path / "a.bin"
    header = {"dtype": "uint16", "tokens": 3, "bytes": 3, "documents": 1, "vocab_size": 9, "digest": ""}
    header |= {"format": module.FORMAT, field: value}
    path.write_bytes(json.dumps(header).encode().ljust(HEADER) + bytes(6))
    with pytest.raises(UserError, match="not a token file"):
        TokenFile.open(path)
