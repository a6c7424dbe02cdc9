"""Texts with classes, from a file or from the corpus."""

from pathlib import Path
from typing import Any

import pytest

from anyformer.compare.compare import compare
from anyformer.compare.tasks.classifier import by_document, by_order, read_labeled_texts
from anyformer.compare.tasks.items import words
from anyformer.errors import UserError
from tests.compare.tasks.corpora import HELD_OUT, TRAIN, tokenizer


def test_a_file_is_read_and_split(tmp_path: Path) -> None:
    path = tmp_path / "reviews.csv"
    rows = [f"film {number} is {word},{word}" for number in range(30) for word in ("good", "bad")]
    path.write_text("text,label\n" + "\n".join(rows))
    found = read_labeled_texts([str(path)])
    assert found.labels == ("bad", "good")
    assert len(found.training) == 42
    assert len(found.test) == 18
    assert not set(found.training) & set(found.test)
    for text, label in (*found.training, *found.test):
        assert text.endswith(found.labels[label])


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        (["a,yes", "b,yes"], "all labels are 'yes', so there is nothing to learn"),
        (["a,0.5", "b,1.25"], "has numbers to be predicted, and a comparison takes texts with one label each"),
    ],
)
def test_labels_that_can_not_be_learned_are_refused(tmp_path: Path, rows: list[str], reason: str) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("\n".join(["text,label", *rows]))
    with pytest.raises(UserError, match=reason):
        read_labeled_texts([str(path)])


def test_they_are_refused_before_anything_is_trained(tmp_path: Path) -> None:
    (tmp_path / "classify.csv").write_text("text,label\na,yes\nb,yes\n")
    (tmp_path / "data.csv").write_text("".join(TRAIN))
    asked: dict[str, Any] = {name: str(tmp_path / f"{name}.csv") for name in ("data", "classify")}
    with pytest.raises(UserError, match="all labels are 'yes', so there is nothing to learn"):
        compare(["gpt2", "llama"], out=tmp_path / "out", **asked)
    with pytest.raises(UserError, match="--classify is for the tasks, and --no-tasks leaves them out"):
        compare(["gpt2", "llama"], tasks=False, **asked)
    assert not (tmp_path / "out").exists()


def test_passages_of_documents_are_told_apart() -> None:
    texts = ["too short", *TRAIN]
    found = by_document(texts, tokenizer("causal"), 24, seed=0)
    assert found is not None
    assert found.labels == ["text 1", "text 2"]
    by_length = sorted(TRAIN, key=len, reverse=True)
    for text, label in (*found.training, *found.test):
        assert text in by_length[label]
    assert not {text for text, _ in found.training} & {text for text, _ in found.test}
    assert len(found.training) > 2 * len(found.test) > 40
    assert found == by_document(texts, tokenizer("causal"), 24, seed=0)
    assert by_document([TRAIN[0]], tokenizer("causal"), 24, seed=0) is None


def test_shuffled_passages_have_the_same_words() -> None:
    passages = HELD_OUT[0].splitlines()
    found = by_order(passages, passages[:10], seed=0)
    assert found == by_order(passages, passages[:10], seed=0)
    for passage, (text, label) in zip(passages, found.training, strict=True):
        before, after = ([word.text for word in words(each)] for each in (passage, text))
        assert (text == passage) == (label == 0)
        assert sorted(before) == sorted(after)
        assert (before[0], before[-1]) == (after[0], after[-1])
