from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from anyformer.data.examples import ClassifyExample, EmbedExample, TagExample
from anyformer.data.examples.labels import check_learnable, resolve_embeddings, resolve_labels, resolve_tags
from anyformer.data.formats import Location
from anyformer.errors import UserError


def location(number: int) -> Location:
    return Location(Path("a.csv"), number)


def texts(*labels: Any, second: str | None = None) -> list[ClassifyExample]:
    return [
        ClassifyExample(location=location(number), text="x", second=second, label=label)
        for number, label in enumerate(labels, start=1)
    ]


def settled(*labels: Any, **options: Any) -> tuple[list[Any], str, tuple[str, ...]]:
    found, labels = resolve_labels(texts(*labels), **options)
    return [example.label for example in found], labels.kind, labels.names


@pytest.mark.parametrize(
    ("labels", "options", "values", "kind", "names"),
    [
        (["b", "a", "b"], {}, ["b", "a", "b"], "single", ("a", "b")),
        ([10, 9, 10], {}, ["10", "9", "10"], "single", ("9", "10")),
        (["10", "9", "10"], {}, ["10", "9", "10"], "single", ("9", "10")),
        ([True, False], {}, ["true", "false"], "single", ("false", "true")),
        ([1.0, 0.0, 1.0], {}, ["1", "0", "1"], "single", ("0", "1")),
        (["1.0", "0"], {}, ["1", "0"], "single", ("0", "1")),
        ([-1, 1], {}, ["-1", "1"], "single", ("-1", "1")),
        ([1, 2.5], {}, [1.0, 2.5], "regression", ()),
        (["5.0", "3.8"], {}, [5.0, 3.8], "regression", ()),
        ([1, 3], {"kind": "regression"}, [1.0, 3.0], "regression", ()),
        ([1.5, 3], {"kind": "single"}, ["1.5", "3"], "single", ("1.5", "3")),
        ([("a", "b"), (), ("b",)], {}, [("a", "b"), (), ("b",)], "multiple", ("a", "b")),
        ([(10,), (9, 10)], {}, [("10",), ("9", "10")], "multiple", ("9", "10")),
        ([(0, 1, 1), (0, 0, 0)], {}, [("1", "2"), ()], "multiple", ("0", "1", "2")),
        (["a", "b"], {"kind": "multiple"}, [("a",), ("b",)], "multiple", ("a", "b")),
        (["z", "a"], {"classes": ("z", "m", "a")}, ["z", "a"], "single", ("z", "m", "a")),
        (["a", "a"], {"names": ("b", "a")}, ["a", "a"], "single", ("b", "a")),
        ([1, 0], {"names": ("neg", "pos")}, ["pos", "neg"], "single", ("neg", "pos")),
        (["1", "0"], {"names": ("neg", "pos")}, ["pos", "neg"], "single", ("neg", "pos")),
        ([(1,), ("neg",)][:1], {"names": ("neg", "pos")}, [("pos",)], "multiple", ("neg", "pos")),
    ],
)
def test_labels_are_names_or_numbers(
    labels: list[Any], options: dict[str, Any], values: list[Any], kind: str, names: tuple[str, ...]
):
    assert settled(*labels, **options) == (values, kind, names)


def test_what_was_found_is_said():
    assert resolve_labels(texts("b", "a"))[1].note == "2 labels: a, b"
    assert resolve_labels(texts(0, 2.5))[1].note == "numbers from 0 to 2.5 to be predicted, as some have decimals"
    assert resolve_labels(texts(*map(str, range(9))))[1].note == "9 labels: 0, 1, 2, 3, 4, 5, 6, 7, ..."


@pytest.mark.parametrize(
    ("labels", "options", "message"),
    [
        ([1, "a"], {}, r"a\.csv, line 2, has a text as its label, and the rows before have a number"),
        ([1, True], {}, r"a\.csv, line 2, has true or false as its label, and the rows before have a number"),
        (["a", ("a",)], {}, r"a\.csv, line 2, has a list as its label, and the rows before have a text"),
        ([("a",), (1,)], {}, r"a\.csv, line 2, has texts as labels, and the rows before numbers"),
        ([0.5, float("nan")], {}, r"a\.csv, line 2, has nan as its label: only finite numbers can be learned"),
        (["0.5", "inf", "1"], {}, r"a\.csv, line 2, has inf in its label"),
        (["0.5", "1.5", "2.5", "x"], {}, r"a\.csv, line 4, has 'x' as its label: that is no number, as most labels"),
        ([0.5, 1e308], {}, r"a\.csv, line 2, has 1e\+308 in its label: only finite numbers below 3e38"),
        ([0.5, 10**400], {}, r"a\.csv, line 2, has inf in its label: only finite numbers"),
        (["a", "b"], {"kind": "regression"}, r"a\.csv, line 1, has no number in its label: that is 'a'"),
        ([("a",)], {"kind": "single"}, r"a\.csv, line 1, has a list of labels, and single labels were asked for"),
        (["c"], {"names": ("a", "b")}, r"a\.csv, line 1, has the label 'c', which isn't among the 2 .*: a, b\."),
        ([0, 2], {"names": ("a", "b")}, r"a\.csv, line 2, has the label '2', which isn't among the 2"),
    ],
)
def test_labels_that_can_not_be_learned(labels: list[Any], options: dict[str, Any], message: str):
    with pytest.raises(UserError, match=message):
        resolve_labels(texts(*labels), **options)


@pytest.mark.parametrize(
    ("labels", "named", "message"),
    [
        (["a", "a"], False, r"a\.csv: all labels are 'a', so there is nothing to learn\."),
        ([1.5, 1.5], True, r"a\.csv: all labels are 1\.5, so there is nothing to learn"),
        ([(), ()], True, r"a\.csv: all labels are missing, so there is nothing to learn"),
        ([("a",), ("a",)], True, r"a\.csv: all labels are \('a',\), so there is nothing to learn"),
        ([*map(str, range(30))], False, r"a\.csv: there are 30 different labels in 30 examples, which are too many"),
    ],
)
def test_labels_that_teach_nothing(labels: list[Any], named: bool, message: str):
    where = Location(Path("a.csv"), 1)
    with pytest.raises(UserError, match=message):
        check_learnable(labels, where, named=named)
    check_learnable([*labels[:1], "other"], where)
    check_learnable([*map(str, range(30))], where)
    check_learnable([*map(str, range(15))] * 2, where, named=False)


def test_pairs_and_single_texts_are_not_mixed():
    with pytest.raises(UserError, match=r"line 1, has a pair of texts, and the rows before have one text"):
        resolve_labels([*texts("a"), *texts("b", second="y")])


def tagged(*tags: tuple[Any, ...]) -> list[TagExample]:
    return [
        TagExample(location=Location(Path("a.conll"), number), words=("x",) * len(each), tags=each)
        for number, each in enumerate(tags, start=1)
    ]


def test_tags_are_names():
    found, labels = resolve_tags(tagged(("O", "B-x"), ("O",)))
    assert [example.tags for example in found] == [("O", "B-x"), ("O",)]
    assert labels.names == ("B-x", "O")
    found, labels = resolve_tags(tagged((10, 9)))
    assert (found[0].tags, labels.names) == (("10", "9"), ("9", "10"))
    assert resolve_tags(tagged((1, 0)), ("O", "B-x"))[0][0].tags == ("B-x", "O")
    assert resolve_tags(tagged(("O", "B-x")), None, ("O", "B-x", "I-x"))[1].names == ("O", "B-x", "I-x")
    with pytest.raises(UserError, match=r"a\.conll, line 2, has texts as tags, and the rows before numbers"):
        resolve_tags(tagged((1, 2), ("O",)))
    with pytest.raises(UserError, match=r"a\.conll, line 1, has the tag 'B-y', which isn't among the 2"):
        resolve_tags(tagged(("O", "B-y")), ("O", "B-x"))


def embedded(*scores: Any, label: bool = False, count: int = 2) -> list[EmbedExample]:
    return [
        EmbedExample(location=location(number), texts=("x",) * count, **{"label" if label else "score": score})
        for number, score in enumerate(scores, start=1)
    ]


@pytest.mark.parametrize(
    ("examples", "scores", "note"),
    [
        (embedded(0.0, 0.5, 1.0), [0.0, 0.5, 1.0], "scores from 0 to 1"),
        (embedded(-1.0, 1.0), [-1.0, 1.0], "scores from -1 to 1"),
        (embedded(0.0, 3.8, 5.0), [0.0, 0.76, 1.0], "scores from 0 to 5, divided by 5"),
        (embedded("0.0", "3.8", label=True), [0.0, 0.76], "scores from 0 to 3.8, divided by 5"),
    ],
)
def test_scores_are_scaled(examples: list[EmbedExample], scores: list[float], note: str):
    found, labels = resolve_embeddings(examples)
    assert [example.score for example in found] == scores
    assert {example.label for example in found} == {None}
    assert (labels.names, labels.note) == ((), note)


def test_classes_and_texts_alone():
    found, labels = resolve_embeddings(embedded(1, 0, label=True))
    assert [example.label for example in found] == ["1", "0"]
    assert (labels.names, labels.note) == (("0", "1"), "2 labels: 0, 1")
    assert resolve_embeddings(embedded(None, None))[1].note == "pairs"
    assert resolve_embeddings(embedded(None, count=3))[1].note == "triplets"
    with pytest.raises(UserError, match=r"a\.csv, line 1, has 3 texts, and the rows before have 2"):
        resolve_embeddings([*embedded(None), *embedded(None, count=3)])
    with pytest.raises(UserError, match=r"a\.csv, line 2, has a score of a range that isn't known, .* from 0 to 100"):
        resolve_embeddings(embedded(0.0, 100.0))


@pytest.mark.parametrize("task", ["single", "multiple", "tag"])
def test_many_different_labels_take_time_in_proportion(task: str):
    where, count = Location(Path("a.jsonl"), 1), 20_000
    labels = [f"label {number}" for number in range(count)]
    begun = time.process_time()
    if task == "tag":
        _, found = resolve_tags([TagExample(location=where, words=("word",), tags=(label,)) for label in labels])
    else:
        given: list[Any] = labels if task == "single" else [(label, "other") for label in labels]
        _, found = resolve_labels([ClassifyExample(location=where, text="text", label=label) for label in given])
    assert len(found.names) == count + (task == "multiple")
    assert time.process_time() - begun < 4
