from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from anyformer.data import pairs as module
from anyformer.data import token_files
from anyformer.data.corpus import MIN_DOCUMENTS
from anyformer.data.pairs import Pair, PairCorpus, PairFile, parallel_files, record_files, tokenize_pairs
from anyformer.errors import UserError
from anyformer.tokenizer import Tokenizer

here = settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
line = st.text(st.characters(exclude_characters="\0\ufeff\n\r", exclude_categories=["Cs"]), max_size=8)


def parallel(folder: Path, sources: list[str], targets: list[str], ends: str = "\n") -> list[Path]:
    for name, lines in (("a.en", sources), ("a.de", targets)):
        (folder / name).write_bytes("".join(text + ends for text in lines).encode())
    return parallel_files(str(folder / "a.en"), str(folder / "a.de"))


@here
@given(pairs=st.lists(st.tuples(line, line), min_size=1, max_size=50), ends=st.sampled_from(["\n", "\r\n"]))
def test_files_and_records_give_the_same_pairs(tmp_path: Path, pairs: list[tuple[str, str]], ends: str):
    files = parallel(tmp_path, [a for a, _ in pairs], [b for _, b in pairs], ends)
    rows = "".join(json.dumps({"en": a, "de": b}) + "\n" for a, b in pairs)
    (tmp_path / "a.jsonl").write_text(rows, encoding="utf-8")
    whole = [(a, b) for a, b in pairs if a.strip() and b.strip()]
    if not whole:
        with pytest.raises(UserError, match=r"There is no pair to read in .*a\.en and .*a\.de: all \d+ have an empty"):
            PairCorpus(files, None)
        return
    for corpus in (PairCorpus(files, None), PairCorpus(record_files(tmp_path / "a.jsonl"), ("en", "de"))):
        assert [(pair.source, pair.target) for pair in corpus] == whole
        assert (corpus.split.count, corpus.split.dropped) == (len(whole), len(pairs) - len(whole))
        assert corpus.split.characters == sum(len(a) + len(b) for a, b in whole)
        held_out = [pair for out, pair in corpus.labeled() if out]
        assert len(held_out) >= (len(whole) > 1)
        assert len(held_out) <= max(round(0.1 * len(whole)), 1) or len(whole) >= MIN_DOCUMENTS


def test_a_tenth_is_held_out_and_always_the_same(tmp_path: Path):
    lines = [f"line {i}" for i in range(500)]
    found: list[list[int]] = []
    for place in ("x", "y/z"):
        (tmp_path / place).mkdir(parents=True)
        corpus = PairCorpus(parallel(tmp_path / place, lines, lines), None)
        found.append([pair.line for out, pair in corpus.labeled() if out])
    assert found[0] == found[1]
    assert 40 <= len(found[0]) <= 55
    assert found[0] != list(range(found[0][0], found[0][0] + len(found[0])))


@pytest.mark.parametrize(("left", "right"), [(5, 3), (3, 5), (1, 0), (0, 1)])
@pytest.mark.parametrize("packed", [False, True])
def test_unequal_files_are_refused_with_both_counts(tmp_path: Path, left: int, right: int, packed: bool):
    for name, count in (("a.en", left), ("a.de", right)):
        content = b"text\n" * count
        (tmp_path / f"{name}.gz").write_bytes(gzip.compress(content)) if packed else None
        (tmp_path / name).write_bytes(content)
    end = ".gz" if packed else ""
    files = parallel_files(str(tmp_path / f"a.en{end}"), str(tmp_path / f"a.de{end}"))
    with pytest.raises(UserError, match=rf"a\.en{end} has {left} lines and .*a\.de{end} has {right}: "):
        PairCorpus(files, None)


def test_the_last_line_needs_no_end(tmp_path: Path):
    files = parallel(tmp_path, ["a", "b"], ["c", "d"])
    files[0].write_text("a\nb")
    files[1].write_text("\ufeffc\nd")
    assert [(p.source, p.target, p.line) for p in PairCorpus(files, None)] == [("a", "c", 1), ("b", "d", 2)]


def test_what_is_no_pair_file(tmp_path: Path):
    parallel(tmp_path, ["a"], ["b"])
    with pytest.raises(UserError, match=r"There is no file .*a\.fr to take pairs from"):
        parallel_files(str(tmp_path / "a.en"), str(tmp_path / "a.fr"))
    with pytest.raises(UserError, match="is a folder: parallel text is two files"):
        parallel_files(str(tmp_path), str(tmp_path / "a.de"))
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(UserError, match=r"a\.txt has no fields to take pairs from: use \.jsonl"):
        record_files([tmp_path / "a.txt"])
    (tmp_path / "a.jsonl").write_text('{"en": "a", "dt": "b"}\n')
    with pytest.raises(UserError, match="line 1, has no field 'de': choose from 'dt', 'en'"):
        PairCorpus([tmp_path / "a.jsonl"], ("en", "de"))
    files = parallel(tmp_path, [], [])
    with pytest.raises(UserError, match=r"There is no pair to read in .*: it is empty"):
        PairCorpus(files, None)


words = st.text(st.sampled_from("one two,."), min_size=1, max_size=12)


@here
@given(
    pairs=st.lists(st.tuples(st.sampled_from(["training", "validation"]), words, words), max_size=12),
    at_once=st.integers(1, 30),
)
def test_pairs_come_back_as_they_were_written(tmp_path_factory: pytest.TempPathFactory, pairs, at_once: int):
    tmp_path = tmp_path_factory.mktemp("pairs")
    tokenizer = Tokenizer.train(["one two,."], "bpe:270", special="seq2seq")
    labeled = [(part, Pair(a, b, Path("a"), i)) for i, (part, a, b) in enumerate(pairs, start=1)]
    folders = {name: tmp_path / name for name in ("training", "validation")}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(token_files, "CHUNK", at_once)
        tokenize_pairs(labeled, tokenizer, folders)
    for name, folder in folders.items():
        own = [(a, b) for part, a, b in pairs if part == name]
        file = PairFile.open(folder)
        assert len(file) == len(own)
        read = [(file.source(i).tolist(), file.target(i).tolist()) for i in range(len(file))]
        assert read == [tuple(tokenizer.encode_batch(pair, special=False)) for pair in own]
        assert file.source_lengths.tolist() == [len(a) for a, _ in read]
        assert file.target_lengths.tolist() == [len(b) for _, b in read]
        assert file.sources.header.bytes == sum(len(a) for a, _ in own)


def test_workers_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(token_files, "CHUNK", 20)
    tokenizer = Tokenizer.train(["one two three"], "bpe:270", special="seq2seq")
    pairs = [("a", Pair(f"one {'two ' * (i % 7)}", "three" * (i % 5 + 1), Path("a"), i)) for i in range(60)]
    for workers in (1, 2):
        tokenize_pairs(pairs, tokenizer, {"a": tmp_path / str(workers)}, workers=workers)
    for name in ("source.bin", "target.bin", "source.npy", "target.npy"):
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "2" / name).read_bytes()
    assert PairFile.open(tmp_path / "1").digest == PairFile.open(tmp_path / "2").digest


@pytest.mark.parametrize("name", ["source.npy", "target.bin"])
@pytest.mark.parametrize("content", [None, b"", b"rubbish"])
def test_damaged_pairs_are_refused(tmp_path: Path, name: str, content: bytes | None):
    tokenizer = Tokenizer.train(["one two"], "bpe:270", special="seq2seq")
    tokenize_pairs([("a", Pair("one", "two", Path("a"), 1))], tokenizer, {"a": tmp_path / "a"})
    assert (
        np.diff(PairFile.open(tmp_path / "a").source_offsets).tolist()
        == PairFile.open(tmp_path / "a").source_lengths.tolist()
    )
    path = tmp_path / "a" / name
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=r"made anew|can't be read"):
        PairFile.open(tmp_path / "a")


@pytest.mark.parametrize("offsets", [[0, 5, 3, 6], [1, 6], [-1, 6], [0, 2**62, 6]])
def test_offsets_that_lead_elsewhere_are_damaged(tmp_path: Path, offsets: list[int]):
    np.save(tmp_path / "source.npy", np.array(offsets, np.int64))
    with pytest.raises(UserError, match="is damaged"):
        module._offsets(tmp_path / "source.npy", 6)
