"""A tag for each word: precision, recall and F1 of entities, as conlleval.pl and seqeval's default mode define them."""

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
        sum(tag == said for tag, said in zip(row, found, strict=True))
        for row, found in zip(references, predictions, strict=True)
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
    found = [[set(entities(tags)) for tags in rows] for rows in (references, predictions)]
    kinds = sorted({entity.kind for rows in found for row in rows for entity in row})
    index = {kind: number for number, kind in enumerate(kinds)}
    counts = np.zeros((len(references), 3, len(kinds)))
    for row, actual, predicted in zip(counts, *found, strict=True):
        for column, part in zip(row, (actual & predicted, predicted, actual), strict=True):
            for kind, number in Counter(entity.kind for entity in part).items():
                column[index[kind]] = number
    return kinds, counts.reshape(len(references), -1)


def entities(tags: Sequence[str]) -> list[EntitySpan]:
    """The entities of tags such as B-person, I-person and O, in any of the schemes IOB1, IOB2, IOE and IOBES.

    Tags that no scheme allows are read as conlleval.pl does: an entity also begins with an I whose kind is not that of
    the word before.
    """
    found: list[EntitySpan] = []
    begin, before, kind_before = 0, "O", ""
    for position, tag in enumerate([*tags, "O"]):
        # "B-a-b" is of kind a-b, "B" of kind _.
        prefix, kind = tag[0], tag[1:].split("-", maxsplit=1)[-1] or "_"
        changed = kind != kind_before
        if before != "O" and (before in "ES" or prefix in "BSO" or changed):
            found.append(EntitySpan(kind_before, begin, position))
        if prefix != "O" and (prefix in "BS" or before in "OES" or changed):
            begin = position
        before, kind_before = prefix, kind
    return found


def is_entity_scheme(tags: Iterable[str]) -> bool:
    """Whether tags are O and the beginnings and insides of entities, and not parts of speech, say."""
    tags = set(tags)
    return "O" in tags and all(tag in ("O", *"BIES") or tag.startswith(("B-", "I-", "E-", "S-")) for tag in tags)


def _precision(sums: Array) -> Array:
    right, predicted, _ = np.split(sums, 3, axis=-1)
    return divide(right.sum(axis=-1), predicted.sum(axis=-1))


def _recall(sums: Array) -> Array:
    right, _, actual = np.split(sums, 3, axis=-1)
    return divide(right.sum(axis=-1), actual.sum(axis=-1))
