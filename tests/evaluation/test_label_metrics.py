"""Metrics of classes, against scikit-learn's, and of entities, against seqeval's default mode."""

import warnings
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics as theirs
from sklearn.preprocessing import MultiLabelBinarizer

from anyformer.evaluation.label_metrics import (
    Piece,
    all_labels,
    classification,
    confusion_matrix,
    entities,
    multilabel,
    span_pieces,
    tagging,
)

NAMES = ["good", "bad", "mixed", "none", "a"]


@st.composite
def labelled(draw: st.DrawFn) -> tuple[list[str], list[str]]:
    names = NAMES[: draw(st.integers(1, len(NAMES)))]
    pairs = draw(st.lists(st.tuples(*[st.sampled_from(names)] * 2), min_size=1, max_size=40))
    return [pair[0] for pair in pairs], [pair[1] for pair in pairs]


def _sklearn(references: list[str], predictions: list[str]) -> dict[str, float]:
    keywords: dict[str, Any] = {"zero_division": 0}
    known = sorted({*references, *predictions})
    averages = {"f1": "macro", "f1_weighted": "weighted"}
    if len(known) == 2:
        averages, keywords = {"f1": "binary"}, keywords | {"pos_label": known[1]}
    found = {name: theirs.f1_score(references, predictions, average=a, **keywords) for name, a in averages.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a single class
        mcc = theirs.matthews_corrcoef(references, predictions)
    return found | {"accuracy": theirs.accuracy_score(references, predictions), "mcc": mcc}


@given(labelled())
def test_scores_are_scikit_learns(pair: tuple[list[str], list[str]]) -> None:
    found = {name: metric.value for name, metric in classification(*pair)[0].items()}
    assert found == pytest.approx(_sklearn(*pair), abs=1e-9)


@given(labelled())
def test_scores_of_resamples_are_those_of_the_rows(pair: tuple[list[str], list[str]]) -> None:
    """A row that counts twice is as good as two rows."""
    references, predictions = (np.array(column) for column in pair)
    counts = np.random.default_rng(0).integers(3, size=len(references))
    counts[0] += 1
    whole, _ = classification(*pair)
    drawn, _ = classification([*references.repeat(counts)], [*predictions.repeat(counts)], all_labels(*pair))
    for name, metric in drawn.items():
        assert whole[name].of_counts(counts[None].astype(float))[0] == pytest.approx(metric.value, abs=1e-9)


@given(labelled())
def test_the_table_and_the_matrix_are_scikit_learns(pair: tuple[list[str], list[str]]) -> None:
    labels = all_labels(*pair)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a single class
        wanted: Any = theirs.classification_report(*pair, output_dict=True, zero_division=0)
        matrix = theirs.confusion_matrix(*pair, labels=labels)
    for row in classification(*pair)[1]:
        ours = {"precision": row.precision, "recall": row.recall, "f1-score": row.f1, "support": row.support}
        assert ours == pytest.approx(wanted[row.label])
    assert (confusion_matrix(*pair, labels) == matrix).all()


@given(
    st.lists(st.tuples(*[st.sets(st.sampled_from(NAMES))] * 2), min_size=1, max_size=30).filter(
        lambda rows: len({name for row in rows for names in row for name in names}) > 1
    )
)
def test_several_labels_are_scikit_learns(rows: list[tuple[set[str], set[str]]]) -> None:
    references, predictions = [row[0] for row in rows], [row[1] for row in rows]
    binarizer = MultiLabelBinarizer().fit([*references, *predictions])
    x, y = binarizer.transform(references), binarizer.transform(predictions)
    found = {name: metric.value for name, metric in multilabel(references, predictions)[0].items()}
    assert found == pytest.approx(
        {
            "f1": theirs.f1_score(x, y, average="micro", zero_division=0),
            "f1_macro": theirs.f1_score(x, y, average="macro", zero_division=0),
            "exact_match": theirs.accuracy_score(x, y),
        }
    )


def test_the_second_label_is_the_positive_one() -> None:
    rows = ["yes", "no", "no"], ["yes", "yes", "no"]
    assert classification(*rows, labels=["no", "yes"])[0]["f1"].value == pytest.approx(2 / 3)
    assert classification(*rows, labels=["yes", "no"])[0]["f1"].value == pytest.approx(2 / 3)
    rows = ["yes", "no", "no", "no"], ["yes", "yes", "no", "no"]
    assert classification(*rows, labels=["no", "yes"])[0]["f1"].value == pytest.approx(2 / 3)
    assert classification(*rows, labels=["yes", "no"])[0]["f1"].value == pytest.approx(0.8)


seqeval: Any = pytest.importorskip("seqeval.metrics", reason="seqeval is what entities are compared with")

TAGS = st.sampled_from(["O", *(f"{prefix}-{kind}" for prefix in "BIES" for kind in ("per", "loc", "a-b")), "B", "I"])
ROWS = st.lists(st.lists(st.tuples(TAGS, TAGS), min_size=1, max_size=12), min_size=1, max_size=6)


def _columns(rows: list[list[tuple[str, str]]]) -> tuple[list[list[str]], list[list[str]]]:
    return [[pair[0] for pair in row] for row in rows], [[pair[1] for pair in row] for row in rows]


@given(ROWS)
def test_entities_are_seqevals(rows: list[list[tuple[str, str]]]) -> None:
    for tags in _columns(rows)[0]:
        from seqeval.metrics.sequence_labeling import get_entities

        assert [(kind, start, end - 1) for kind, start, end in entities(tags)] == get_entities(tags)


@given(ROWS)
def test_scores_are_seqevals(rows: list[list[tuple[str, str]]]) -> None:
    references, predictions = _columns(rows)
    found = {name: metric.value for name, metric in tagging(references, predictions)[0].items()}
    wanted = {
        "entity_f1": seqeval.f1_score(references, predictions, zero_division=0),
        "precision": seqeval.precision_score(references, predictions, zero_division=0),
        "recall": seqeval.recall_score(references, predictions, zero_division=0),
        "accuracy": seqeval.accuracy_score(references, predictions),
    }
    assert found == pytest.approx(wanted)
    table = tagging(references, predictions)[1]
    if table:
        report = seqeval.classification_report(references, predictions, output_dict=True, zero_division=0)
        for row in table:
            ours = {"precision": row.precision, "recall": row.recall, "f1-score": row.f1, "support": row.support}
            assert ours == pytest.approx(report[row.label])


def test_without_entities_nothing_is_found() -> None:
    metrics, table = tagging([["O", "O"]], [["O", "O"]])
    assert metrics["entity_f1"].value == 0
    assert table == []


TAGS = st.sampled_from(["O", "O", "B-person", "I-person", "B-place", "I-place", "S-place", "E-person"])


@given(st.lists(st.tuples(st.text("abc.", min_size=1, max_size=5), TAGS), max_size=9), st.booleans())
def test_pieces_are_the_sentence_and_its_entities(tagged: list[tuple[str, str]], grouped: bool) -> None:
    words, tags = [word for word, _ in tagged], [tag for _, tag in tagged]
    pieces = span_pieces(words, tags, grouped=grouped)
    assert "".join(piece.text for piece in pieces) == " ".join(words)
    found = [piece for piece in pieces if piece.kind]
    if grouped:
        assert found == [Piece(" ".join(words[each.start : each.end]), each.kind) for each in entities(tags)]
    else:
        assert found == [Piece(*pair) for pair in tagged]


def test_an_example() -> None:
    words, tags = ["I", "saw", "Ann", "Lee", "in", "Rome", "."], ["O", "O", "B-person", "I-person", "O", "B-place", "O"]
    assert span_pieces(words, tags, grouped=True) == [
        ("I saw ", ""),
        ("Ann Lee", "person"),
        (" in ", ""),
        ("Rome", "place"),
        (" .", ""),
    ]
