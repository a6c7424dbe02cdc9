"""Tags of words: entities, their precision, recall and F1, as conlleval.pl and seqeval's default mode define them."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from anyformer.evaluation.metrics.classification import ClassScores, class_table, micro_f1
from anyformer.evaluation.metrics.metric import UNIT, Array, Metric, divide, ratio

Tags = Sequence[Sequence[str]]


class EntitySpan(NamedTuple):
    """The words of an entity, such as a person's name."""

    kind: str
    start: int
    end: int
    """Behind its last word."""


def tagging(references: Tags, predictions: Tags) -> dict[str, Metric]:
    """F1, precision and recall of whole entities of the right kind, and the accuracy of single tags."""
    _, counts = entity_counts(references, predictions)
    right = [
        sum(tag == predicted for tag, predicted in zip(*rows, strict=True))
        for rows in zip(references, predictions, strict=True)
    ]
    return {
        "entity_f1": Metric(counts, micro_f1, UNIT),
        "precision": Metric(counts, _precision, UNIT),
        "recall": Metric(counts, _recall, UNIT),
        "accuracy": replace(ratio(right, [len(row) for row in references]), bounds=UNIT),
    }


def entity_table(references: Tags, predictions: Tags) -> list[ClassScores]:
    """Precision, recall, F1 and support of each kind of entity."""
    kinds, counts = entity_counts(references, predictions)
    return class_table(counts, kinds)


def entity_counts(references: Tags, predictions: Tags) -> tuple[list[str], Array]:
    """The kinds of entities, and how many of each are right, predicted, true in each row [rows, 3 * kinds]."""
    both = [[set(entities(tags)) for tags in rows] for rows in (references, predictions)]
    kinds = sorted({entity.kind for rows in both for row in rows for entity in row})
    index = {kind: number for number, kind in enumerate(kinds)}
    counts = np.zeros((len(references), 3, len(kinds)))
    for row, actual, predicted in zip(counts, *both, strict=True):
        for column, part in zip(row, (actual & predicted, predicted, actual), strict=True):
            for kind, number in Counter(entity.kind for entity in part).items():
                column[index[kind]] = number
    return kinds, counts.reshape(len(references), -1)


def entities(tags: Sequence[str]) -> list[EntitySpan]:
    """The entities of tags such as B-person, I-person and O, in any of the schemes IOB1, IOB2, IOE and IOBES.

    Tags that no scheme allows are read as conlleval.pl does: an entity also begins with an I whose kind is not that of
    the word before.
    """
    spans: list[EntitySpan] = []
    begin, before, kind_before = 0, "O", ""
    for position, tag in enumerate([*tags, "O"]):
        # "B-a-b" is of kind a-b, "B" of kind _.
        prefix, kind = tag[0], tag[1:].split("-", maxsplit=1)[-1] or "_"
        changed = kind != kind_before
        if before != "O" and (before in "ES" or prefix in "BSO" or changed):
            spans.append(EntitySpan(kind_before, begin, position))
        if prefix != "O" and (prefix in "BS" or before in "OES" or changed):
            begin = position
        before, kind_before = prefix, kind
    return spans


def is_entity_scheme(tags: Iterable[str]) -> bool:
    """Whether tags are O and the beginnings and insides of entities, and not parts of speech, say."""
    tags = set(tags)
    return "O" in tags and all(tag in ("O", *"BIES") or tag.startswith(("B-", "I-", "E-", "S-")) for tag in tags)


class Piece(NamedTuple):
    """A piece of a sentence."""

    text: str
    kind: str
    """Kind of the entity, or the tag of a single word; empty if it has none."""


class TaggedSpans(NamedTuple):
    """A sentence as it is tagged right, and as a model tagged it; the pieces of each are the whole sentence."""

    right: Sequence[Piece]
    predicted: Sequence[Piece]


def kind_spans(tags: Sequence[str], *, grouped: bool) -> list[tuple[str, int, int]]:
    """Kind, first word, and the word behind the last of each entity; of each word unless tags are `grouped`."""
    if grouped:
        return [(each.kind, each.start, each.end) for each in entities(tags)]
    return [(tag, place, place + 1) for place, tag in enumerate(tags)]


def span_pieces(words: Sequence[str], tags: Sequence[str], *, grouped: bool) -> list[Piece]:
    """The pieces of a sentence whose words have a space between them; `grouped` as of `kind_spans`."""
    pieces, behind = list[Piece](), 0
    for kind, start, end in (*kind_spans(tags, grouped=grouped), ("", len(words), len(words))):
        if plain := " ".join(words[behind:start]):
            pieces.append(Piece(f"{' ' * (behind > 0)}{plain}{' ' * (start < len(words))}", ""))
        elif 0 < behind < len(words):
            pieces.append(Piece(" ", ""))
        if end > start:
            pieces.append(Piece(" ".join(words[start:end]), kind))
        behind = end
    return pieces


def _precision(sums: Array) -> Array:
    right, predicted, _ = np.split(sums, 3, axis=-1)
    return divide(right.sum(axis=-1), predicted.sum(axis=-1))


def _recall(sums: Array) -> Array:
    right, _, actual = np.split(sums, 3, axis=-1)
    return divide(right.sum(axis=-1), actual.sum(axis=-1))
