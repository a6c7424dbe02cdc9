from __future__ import annotations

import gzip
import json
import os
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from anyformer.data import corpus, formats, input_files
from anyformer.data.corpus import MIN_DOCUMENTS, Corpus, Split, documents, standard_library
from anyformer.data.input_files import find_files
from anyformer.errors import UserError

here = settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
printable = st.text(st.characters(exclude_characters="\0\ufeff", exclude_categories=["Cs"]), min_size=1)


def parts(paths: Path | list[Path]) -> tuple[str, str]:
    corpus = Corpus(paths)
    return "|".join(d.text for d in corpus.training()), "|".join(d.text for d in corpus.validation())


@here
@given(texts=st.lists(printable, min_size=1, max_size=MIN_DOCUMENTS - 1), piece=st.integers(1, 9))
def test_few_documents_are_split_by_position(tmp_path: Path, texts: list[str], piece: int):
    path = write(tmp_path / "a.jsonl", "".join(json.dumps({"text": t}) + "\n" for t in texts))
    whole = "".join(texts)
    corpus = Corpus(path)
    training, validation = list(corpus.training()), list(corpus.validation())
    assert "".join(d.text for d in training) == whole[: int(0.9 * len(whole))]
    assert "".join(d.text for d in validation) == whole[int(0.9 * len(whole)) :]
    assert all(d.last for d in training + validation)
    assert (corpus.split.count, corpus.split.characters) == (len(texts), len(whole))
    single = write(tmp_path / "b.txt", whole)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("anyformer.data.documents.PIECE", piece)
        corpus = Corpus(single)
        training, validation = list(corpus.training()), list(corpus.validation())
    assert "".join(d.text for d in training) == whole[: int(0.9 * len(whole))]
    assert "".join(d.text for d in validation) == whole[int(0.9 * len(whole)) :]
    assert [d.last for d in training] == [False] * (len(training) - 1) + [True] * bool(training)
    assert [d.last for d in validation] == [False] * (len(validation) - 1) + [True] * bool(validation)


@here
@given(lengths=st.lists(st.integers(1, 2000), min_size=MIN_DOCUMENTS, max_size=60))
def test_many_documents_are_split_by_document(tmp_path: Path, lengths: list[int]):
    path = write(tmp_path / "a.jsonl", "".join(json.dumps({"text": "x" * n}) + "\n" for n in lengths))
    corpus = Corpus(path)
    training, validation = list(corpus.training()), list(corpus.validation())
    assert sorted(d.line or 0 for d in training + validation) == list(range(1, len(lengths) + 1))
    assert validation
    assert sum(len(d.text) for d in validation) <= 0.1 * sum(lengths)


def test_the_split_does_not_depend_on_where_the_data_is(tmp_path: Path):
    for place in ("one", "two/deep"):
        for i in range(60):
            write(tmp_path / place / f"d{i % 7}" / f"{i}.txt", f"{i} text {'x' * (i % 5)}")
    first, second = parts(tmp_path / "one"), parts(tmp_path / "two/deep")
    assert first == second
    assert 0.05 < len(first[1]) / (len(first[0]) + len(first[1])) <= 0.1


def test_data_that_grows_while_it_is_read(tmp_path: Path):
    for i in range(MIN_DOCUMENTS):
        write(tmp_path / f"{i}.jsonl", '{"text": "x"}\n')
    corpus = Corpus(tmp_path)
    write(tmp_path / "3.jsonl", '{"text": "x"}\n' * 3)
    with pytest.raises(UserError, match="changed while"):
        list(corpus.training())


@here
@given(chosen=st.none() | st.lists(st.booleans(), min_size=1, max_size=40), dropped=st.integers(0, 9))
def test_a_split_can_be_kept(tmp_path: Path, chosen: list[bool] | None, dropped: int):
    import numpy as np

    mask = None if chosen is None else np.array(chosen)
    Split(10**12, len(chosen or [1]), dropped, mask).save(tmp_path / "s.npz")
    again = Split.load(tmp_path / "s.npz")
    assert (again.characters, again.count, again.dropped) == (10**12, len(chosen or [1]), dropped)
    assert (None if again.held_out is None else again.held_out.tolist()) == chosen


@pytest.mark.parametrize("damage", [b"", b"rubbish", None])
def test_a_damaged_split_is_named(tmp_path: Path, damage: bytes | None):
    path = tmp_path / "s.npz"
    Split(5, 1).save(path)
    if damage is None:
        path.unlink()
    else:
        path.write_bytes(damage)
    with pytest.raises(UserError, match="delete its folder"):
        Split.load(path)


def test_a_known_split_is_not_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for index in range(MIN_DOCUMENTS):
        write(tmp_path / f"{index}.txt", f"text {index}")
    first = Corpus(tmp_path)
    monkeypatch.setattr(corpus, "documents", None)
    second = Corpus(tmp_path, split=first.split)
    assert (second.split.count, second.split.characters) == (MIN_DOCUMENTS, first.split.characters)


@pytest.mark.parametrize(
    "facts", [[9, 10**9, 0, 1], [9, -1, 0, 1], [-1, 8, 0, 1], [9, 99, 0, 1], [9, 8, 0], [[9, 8, 0, 1]]]
)
def test_a_split_of_contradictory_numbers_is_damaged(tmp_path: Path, facts: list[int]):
    np.savez(tmp_path / "split.npz", facts=np.array(facts, np.int64), chosen=np.zeros(1, np.uint8))
    with pytest.raises(UserError, match="delete its folder"):
        Split.load(tmp_path / "split.npz")


def write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    data = content.encode() if isinstance(content, str) else content
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def read(*paths: Path) -> list[tuple[str, str, int | None]]:
    return [(d.text, d.path.name, d.line) for d in documents(paths)]


def test_a_folder_is_read_sorted_and_without_hidden_files(tmp_path: Path):
    write(tmp_path / "b.txt", "b")
    write(tmp_path / "a/z.md", "z")
    write(tmp_path / "a/c.py.gz", "c")
    write(tmp_path / "a/image.png", b"\x89PNG\0")
    write(tmp_path / ".hidden.txt", "no")
    write(tmp_path / ".git/x.txt", "no")
    write(tmp_path / "empty.txt", "")
    write(tmp_path / "x.jsonl", '{"text": "one"}\n\n{"text": "", "id": 3}\n{"text": "two"}')
    assert read(tmp_path) == [
        ("b", "b.txt", None),
        ("one", "x.jsonl", 1),
        ("two", "x.jsonl", 4),
        ("c", "c.py.gz", None),
        ("z", "z.md", None),
    ]
    assert read(tmp_path / "a/z.md", tmp_path / "b.txt", tmp_path / "a") == [
        ("z", "z.md", None),
        ("b", "b.txt", None),
        ("c", "c.py.gz", None),
    ]
    assert [d.text for d in documents(str(tmp_path / "b.txt"))] == ["b"]


def test_globs_name_what_the_shell_would(tmp_path: Path):
    for name in ("a.txt", "b.md", "x/c.txt", "x/y/d.txt.gz", "x/image.png", ".hidden.txt", "x/.git/e.txt", "x/f.json"):
        write(tmp_path / name, "text" if not name.endswith("json") else '{"text": "text"}')

    def found(pattern: str) -> list[str]:
        return [path.relative_to(tmp_path).as_posix() for path in find_files(f"{tmp_path}/{pattern}")]

    assert found("*.txt") == ["a.txt"]
    assert found("?.*") == ["a.txt", "b.md"]
    assert found("[b]*") == ["b.md"]
    assert found("**/*.txt*") == ["a.txt", "x/c.txt", "x/y/d.txt.gz"]
    assert found("*") == ["a.txt", "b.md", "x/c.txt", "x/y/d.txt.gz"]
    assert found("x/*.json") == ["x/f.json"]
    assert found(".hidden*") == [".hidden.txt"]
    for nothing in ("*.csv", "x/*.png", "none/**"):
        with pytest.raises(UserError, match="Nothing that can be read matches"):
            found(nothing)
    write(tmp_path / "[1].txt", "a name that looks like a glob")
    assert found("[1].txt") == ["[1].txt"]


def test_each_file_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write(tmp_path / "a.txt", "a")
    monkeypatch.chdir(tmp_path)
    assert find_files(["a.txt", "./a.txt", str(tmp_path / "a.txt"), "*.txt", "."]) == [Path("a.txt")]


def test_a_folder_leaves_json_files_to_be_named(tmp_path: Path):
    write(tmp_path / "package.json", "{\n}")
    write(tmp_path / "a.txt", "a")
    assert read(tmp_path) == [("a", "a.txt", None)]
    write(tmp_path / "b.json", '{"text": "b"}\n{"text": "c"}\n')
    assert read(tmp_path / "b.json") == [("b", "b.json", 1), ("c", "b.json", 2)]


@here
@given(
    text=printable,
    suffix=st.sampled_from([".txt", ".MD", ".py", ".txt.gz"]),
    piece=st.integers(1, 9),
    block=st.integers(1, 9),
)
def test_pieces_join_to_the_file(tmp_path: Path, text: str, suffix: str, piece: int, block: int):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("anyformer.data.documents.PIECE", piece)
        patch.setattr(formats, "_BLOCK", block)
        found = list(documents(write(tmp_path / f"a{suffix.lower()}", text)))
    assert "".join(d.text for d in found) == text
    assert [d.last for d in found] == [False] * (len(found) - 1) + [True]
    assert all(0 < len(d.text) <= piece for d in found)


def test_pieces_end_at_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("anyformer.data.documents.PIECE", 12)
    path = write(tmp_path / "a.txt", "one\n\ntwo\n  three\nfour five six seven\n")
    assert [d.text for d in documents(path)] == ["one\n\n", "two\n  three\n", "four five si", "x seven\n"]


def test_a_byte_order_mark_is_dropped(tmp_path: Path):
    write(tmp_path / "a.txt", b"\xef\xbb\xbfhello \xef\xbb\xbf")
    write(tmp_path / "b.jsonl", b'\xef\xbb\xbf{"text": "x"}\n')
    assert [d.text for d in documents(tmp_path)] == ["hello \ufeff", "x"]


@here
@given(
    before=st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])),
    block=st.integers(1, 9),
    bad=st.sampled_from([b"\xff", b"\0", b"\xc3("]),
)
def test_a_binary_file_is_refused_with_its_offset(tmp_path: Path, before: str, block: int, bad: bytes):
    path = write(tmp_path / "a.txt", before.encode() + bad + b"more")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(formats, "_BLOCK", block)
        with pytest.raises(UserError, match=rf"a\.txt, line \d+, is not UTF-8 text: byte {len(before.encode())} "):
            list(documents(path))


def test_a_file_that_ends_in_half_a_character(tmp_path: Path):
    with pytest.raises(UserError, match="byte 2"):
        list(documents(write(tmp_path / "a.txt", b"ab\xe2\x82")))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda d: d / "missing.txt", "no such file or folder"),
        (lambda d: write(d / "a.pdf", "x"), r"a\.pdf is not a kind.*\.txt, \.md, \.py, \.jsonl"),
        (lambda d: write(d / "a.tar.gz", "x"), "not a kind"),
        (lambda d: write(d / "f/a.png", "x").parent, "has no file to read"),
        (lambda d: write(d / "a.txt", ""), r"a\.txt is empty"),
        (lambda d: write(d / "e/a.txt", "").parent, r"a\.txt is empty"),
        (lambda d: [write(d / "a.txt", ""), write(d / "b.txt", "")], "all 2 files"),
        (lambda d: [], "No data was given"),
        (lambda d: write(d / "a.jsonl", '{"text": "a"}\n{"text": \n'), r"a\.jsonl, line 2, is not JSON"),
        (
            lambda d: write(d / "a.jsonl", '{"text": "a"}\n\n{"txt": "a"}\n'),
            r"line 3, has no field 'text': did you mean 'txt'",
        ),
        (lambda d: write(d / "a.jsonl", '{"text": 3}\n'), "line 1, has no text"),
        (lambda d: write(d / "a.jsonl", '["text"]\n'), "line 1, is no record"),
        (lambda d: write(d / "a.jsonl", "null\n"), "line 1, is no record"),
        (lambda d: write(d / "a.jsonl", '{"a": 1, "b": 2}\n'), "has no field 'text': choose from 'a', 'b'"),
        (lambda d: write(d / "a.jsonl", '{"text": null}\n'), r"a\.jsonl is empty"),
        (lambda d: write(d / "a.jsonl", '{"text": "\\ud83d"}\n'), "line 1, holds half a character"),
        (lambda d: write(d / "a.jsonl", b'{"text": "a"}\n{"text": "\xff"}'), "byte 24"),
    ],
)
def test_bad_data_is_named(tmp_path: Path, make: Callable[[Path], Path | list[Path]], message: str):
    with pytest.raises(UserError, match=message):
        list(documents(make(tmp_path)))


def test_damaged_gzip_files_are_named(tmp_path: Path):
    whole = gzip.compress(os.urandom(5000).hex().encode())
    for content in (b"plain", whole[:-100], whole[:200] + b"\0\0\0\0" + whole[204:]):
        (tmp_path / "a.txt.gz").write_bytes(content)
        with pytest.raises(UserError, match=r"a\.txt\.gz is not a whole gzip file"):
            list(documents(tmp_path / "a.txt.gz"))


@pytest.mark.skipif(sys.platform == "win32" or os.geteuid() == 0, reason="the superuser may read everything")
def test_an_unreadable_file_is_named(tmp_path: Path):
    path = write(tmp_path / "a.txt", "x")
    path.chmod(0)
    with pytest.raises(UserError, match="Permission denied"):
        list(documents(path))


@pytest.mark.parametrize("frames", [1, 3])
def test_zstandard_files(tmp_path: Path, frames: int):
    zstandard = pytest.importorskip("zstandard")
    texts = [os.urandom(3000).hex() + "\n" for _ in range(frames)]
    packed = b"".join(zstandard.ZstdCompressor().compress(text.encode()) for text in texts)
    path = tmp_path / "a.txt.zst"
    path.write_bytes(packed)
    assert "".join(d.text for d in documents(path)) == "".join(texts)
    for broken in (packed[:-100], packed[: len(packed) // 2], b"plain text", packed + b"rubbish"):
        path.write_bytes(broken)
        with pytest.raises(UserError, match=r"a\.txt\.zst is not a whole zstandard file"):
            list(documents(path))


@here
@given(
    content=st.binary(max_size=300), sizes=st.lists(st.integers(1, 50), min_size=1, max_size=9), block=st.integers(2, 9)
)
def test_zstandard_frames_join(tmp_path: Path, content: bytes, sizes: list[int], block: int):
    zstandard = pytest.importorskip("zstandard")
    packed, rest = b"", content
    for size in [*sizes, len(content)]:
        packed += zstandard.ZstdCompressor().compress(rest[:size])
        rest = rest[size:]
    (tmp_path / "a.zst").write_bytes(packed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(input_files, "_BUFFER", block)
        with input_files.opened(tmp_path / "a.zst") as file:
            assert file.read() == content


def test_a_missing_library_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "a.txt.zst").write_bytes(b"")
    (tmp_path / "a.parquet").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    for name in ("a.txt.zst", "a.parquet"):
        with pytest.raises(UserError, match=r"pyarrow: pip install 'anyformer\[data\]'"):
            list(documents(tmp_path / name))


def test_the_standard_library_is_a_corpus():
    found = standard_library()
    assert found == standard_library()
    names = {path.name for path in found}
    assert {"argparse.py", "dataclasses.py", "json"} - names == {"json"}
    root = Path(sysconfig.get_path("stdlib"))
    parts = {part for path in found for part in path.relative_to(root).parts}
    assert not parts & {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}
    assert sum(path.stat().st_size for path in found) > 3_000_000
    assert find_files(found) == found
