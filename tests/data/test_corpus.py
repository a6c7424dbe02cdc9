from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from anyformer.data import corpus
from anyformer.data.corpus import MIN_DOCUMENTS, Corpus, Split
from anyformer.errors import UserError

here = settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
printable = st.text(st.characters(exclude_characters="\0\ufeff", exclude_categories=["Cs"]), min_size=1)


def write(path: Path, content: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode())
    return path


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
        patch.setattr("anyformer.data.corpus.PIECE", piece)
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
