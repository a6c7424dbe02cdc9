"""Entities, against seqeval's default mode, and the pieces of tagged sentences."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anyformer.evaluation.metrics import entities, entity_table, tagging
from anyformer.evaluation.metrics.tagging import Piece, span_pieces

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
    found = {name: metric.value for name, metric in tagging(references, predictions).items()}
    wanted = {
        "entity_f1": seqeval.f1_score(references, predictions, zero_division=0),
        "precision": seqeval.precision_score(references, predictions, zero_division=0),
        "recall": seqeval.recall_score(references, predictions, zero_division=0),
        "accuracy": seqeval.accuracy_score(references, predictions),
    }
    assert found == pytest.approx(wanted)
    table = entity_table(references, predictions)
    if table:
        report = seqeval.classification_report(references, predictions, output_dict=True, zero_division=0)
        for row in table:
            ours = {"precision": row.precision, "recall": row.recall, "f1-score": row.f1, "support": row.support}
            assert ours == pytest.approx(report[row.label])


def test_without_entities_nothing_is_found() -> None:
    assert tagging([["O", "O"]], [["O", "O"]])["entity_f1"].value == 0
    assert entity_table([["O"]], [["O"]]) == []


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
