from __future__ import annotations

import errno
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from anyformer.data import tokens as module
from anyformer.data.sources import Document, documents
from anyformer.data.tokens import HEADER, TokenFile, fingerprint, tokenise
from anyformer.errors import UserError
from anyformer.tokenizer import Tokenizer

here = settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])


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


pieces = st.lists(st.tuples(st.text(min_size=1, max_size=5), st.booleans()), max_size=20)


@here
@given(parts=pieces, separator=st.sampled_from([None, 0]), at_once=st.integers(1, 30))
def test_ids_and_separators(tmp_path: Path, parts: list[tuple[str, bool]], separator: int | None, at_once: int):
    given_documents = [Document(text, Path("a"), last=last) for text, last in parts]
    done: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_CHARACTERS_AT_ONCE", at_once)
        file = tokenise(given_documents, Points(separator=separator), tmp_path / "t", progress=done.append)
    expected: list[int] = []
    for index, (text, _) in enumerate(parts):
        if index and parts[index - 1][1] and separator is not None:
            expected.append(separator)
        expected += map(ord, text)
    assert file.ids.dtype == np.uint32
    assert file.ids.tolist() == expected
    assert len(file) == len(expected) == file.header.tokens
    assert file.header.bytes == sum(len(text.encode()) for text, _ in parts)
    assert file.header.documents == sum(last for _, last in parts)
    assert sum(done) == sum(len(text) for text, _ in parts)


@pytest.mark.parametrize(("size", "dtype"), [(65536, np.uint16), (65537, np.uint32)])
def test_the_width_follows_the_vocabulary(tmp_path: Path, size: int, dtype: type):
    file = tokenise(docs("a\uffff"), Points(vocab_size=size), tmp_path / "t")
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
    file = tokenise(documents(tmp_path), tokenizer, tmp_path / "deep" / "t")
    assert tokenizer.decode(file.ids.tolist(), skip_special=False) == "one\ntwo\n<|endoftext|>three €"
    assert file.header.bytes == 8 + 9
    masked = Tokenizer.train(["one two"], "char", special="masked")
    assert masked.separator == masked.sep


def test_pieces_give_the_ids_of_the_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    text = "def f(x):\n    return x\n\n\n  # don't\n\n" * 40
    (tmp_path / "a.py").write_text(text)
    tokenizer = Tokenizer.train([text], "bpe:300")
    monkeypatch.setattr("anyformer.data.sources.PIECE", 100)
    assert len(list(documents(tmp_path / "a.py"))) > 10
    assert tokenise(documents(tmp_path), tokenizer, tmp_path / "t").ids.tolist() == tokenizer.encode(text)
    characters = Tokenizer.train(documents(tmp_path), "char")
    assert (characters.vocab_size, characters.eos) == (len(set(text)), None)


def test_the_fingerprint_follows_sources_and_tokenizer(tmp_path: Path):
    path = tmp_path / "a.txt"
    path.write_text("hello")
    first = fingerprint([path], Points(), "training")
    assert first == fingerprint([path], Points(), "training")
    assert first != fingerprint([path], Points(), "validation")
    assert first != fingerprint([path], Points(fingerprint="other"), "training")
    path.write_text("hello!")
    assert first != fingerprint([path], Points(), "training")
    assert tokenise(docs("a"), Points(), tmp_path / "t", fingerprint=first).header.fingerprint == first


def test_a_failure_leaves_what_was_there(tmp_path: Path):
    tokenise(docs("old"), Points(), tmp_path / "t")

    def broken() -> Iterator[Document]:
        yield from docs("new")
        raise UserError("no more")

    with pytest.raises(UserError, match="no more"):
        tokenise(broken(), Points(), tmp_path / "t")
    assert TokenFile.open(tmp_path / "t").ids.tolist() == [ord(c) for c in "old"]
    assert [p.name for p in tmp_path.iterdir()] == ["t"]


def test_a_full_disk_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module.os, "fsync", full)
    with pytest.raises(UserError, match="can't be written: No space left"):
        tokenise(docs("a"), Points(), tmp_path / "t")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("content", [b"", b"{}", b"[1]", b"x" * 5000, b'{"format": "other"}'.ljust(HEADER)])
def test_other_files_are_refused(tmp_path: Path, content: bytes):
    (tmp_path / "t").write_bytes(content)
    with pytest.raises(UserError, match="not a token file"):
        TokenFile.open(tmp_path / "t")


def test_missing_and_cut_off_files_are_refused(tmp_path: Path):
    with pytest.raises(UserError, match="can't be read"):
        TokenFile.open(tmp_path / "t")
    tokenise(docs("abc"), Points(), tmp_path / "t")
    (tmp_path / "t").write_bytes((tmp_path / "t").read_bytes()[:-1])
    with pytest.raises(UserError, match="cut off"):
        TokenFile.open(tmp_path / "t")
