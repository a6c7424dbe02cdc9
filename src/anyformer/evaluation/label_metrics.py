"""Metrics of labels and of tagged words: accuracy, F1 and Matthews' correlation.

Classes are scored as scikit-learn defines it, entities as conlleval.pl and seqeval's default mode do.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from anyformer.evaluation.metrics import UNIT, Array, Metric, divide, ratio, share

_NAMED, _CHARACTERS = 12, 40
"""Classes that a sentence names, and characters of a name."""


@dataclass(frozen=True)
class ClassScores:
    """Scores of a class; `support` is the number of its rows."""

    label: str
    precision: float
    recall: float
    f1: float
    support: int


Measured = tuple[dict[str, Metric], list[ClassScores]]
"""Metrics by name, and the scores of each class."""


def classification(references: Sequence[str], predictions: Sequence[str], labels: Sequence[str] = ()) -> Measured:
    """Accuracy, F1 and Matthews' correlation coefficient of one label for each row.

    With two labels F1 is that of the second one, as scikit-learn's of class 1; with more it is the mean of the classes
    (macro), and f1_weighted is weighted by their support. Classes that are neither in the references nor in the
    predictions don't count, and are left out.

    Args:
        labels: All that there are, in their order; others are sorted behind them.
    """
    labels = all_labels(references, predictions, labels)
    rows = class_counts([{name} for name in references], [{name} for name in predictions], labels)
    metrics = {"accuracy": share([right == name for right, name in zip(references, predictions, strict=True)])}
    if len(labels) == 2:
        metrics["f1"] = Metric(rows[:, 1::2], micro_f1, UNIT)
    else:
        metrics |= {"f1": Metric(rows, macro_f1, UNIT), "f1_weighted": Metric(rows, weighted_f1, UNIT)}
    metrics["mcc"] = Metric(rows, _mcc, (-1.0, 1.0))
    return metrics, [row for row in class_table(rows, labels) if row.support or row.precision]


def multilabel(
    references: Sequence[Collection[str]], predictions: Sequence[Collection[str]], labels: Sequence[str] = ()
) -> Measured:
    """Micro and macro F1 of several labels for each row, and the share of rows that have exactly their labels."""
    labels = all_labels([*chain(*references)], [*chain(*predictions)], labels)
    rows = class_counts(references, predictions, labels)
    exact = share([set(right) == set(names) for right, names in zip(references, predictions, strict=True)])
    metrics = {"f1": Metric(rows, micro_f1, UNIT), "f1_macro": Metric(rows, macro_f1, UNIT), "exact_match": exact}
    return metrics, class_table(rows, labels)


def all_labels(references: Collection[str], predictions: Collection[str], labels: Sequence[str] = ()) -> list[str]:
    """The labels that were given, then the others that occur, sorted."""
    return [*labels, *sorted({*references, *predictions} - set(labels))]


def class_counts(
    references: Sequence[Collection[str]], predictions: Sequence[Collection[str]], labels: Sequence[str]
) -> Array:
    """For each row and class [rows, 3 * classes]: is it right, predicted, true? From their sums all F1 follow."""
    index = {name: number for number, name in enumerate(labels)}
    sets = np.zeros((2, len(references), len(labels)))
    for one_hot, rows in zip(sets, (predictions, references), strict=True):
        for row, names in zip(one_hot, rows, strict=True):
            row[[index[name] for name in names]] = 1
    predicted, actual = sets
    return np.concatenate([predicted * actual, predicted, actual], axis=1)


def class_table(counts: Array, labels: Sequence[str]) -> list[ClassScores]:
    """Precision, recall, F1 and support of each class, from `class_counts`."""
    right, predicted, actual = _split(counts.sum(axis=0))
    precision, recall = divide(right, predicted), divide(right, actual)
    columns = zip(labels, precision, recall, f1(right, predicted, actual), actual, strict=True)
    return [ClassScores(label, float(p), float(r), float(both), int(support)) for label, p, r, both, support in columns]


def never_right(classes: Sequence[ClassScores]) -> str | None:
    """Sentence that names the classes of which nothing is found; None: there are none."""
    missed = [f"{row.label[:_CHARACTERS]} (0 of {row.support:,})" for row in classes if row.support and not row.recall]
    if not missed:
        return None
    more = f", and {len(missed) - _NAMED:,} more" if len(missed) > _NAMED else ""
    return f"Never right: {', '.join(missed[:_NAMED])}{more}. They need more examples, or more epochs."


def only_class(references: Sequence[str], predictions: Sequence[str]) -> str | None:
    """Sentence that says that one class alone is predicted; None: several are, or there is only one."""
    if len({*references}) < 2 or len({*predictions}) > 1:
        return None
    return (
        f"All {len(predictions):,} predictions are {predictions[0][:_CHARACTERS]}: the model tells no classes apart. "
        "Try more rows of the other classes, more epochs, or another model, such as one for the language of the texts."
    )


def confusion_matrix(
    references: Sequence[str], predictions: Sequence[str], labels: Sequence[str]
) -> npt.NDArray[np.int64]:
    """Counts of rows by their label (row) and the one they were taken for (column)."""
    index = {name: number for number, name in enumerate(labels)}
    matrix = np.zeros((len(labels), len(labels)), dtype=np.int64)
    np.add.at(matrix, ([index[name] for name in references], [index[name] for name in predictions]), 1)
    return matrix


def f1(right: Array, predicted: Array, actual: Array) -> Array:
    """The harmonic mean of precision and recall; 0 where there is neither a prediction nor anything to be found."""
    return divide(2 * right, predicted + actual)


def micro_f1(sums: Array) -> Array:
    """F1 over all classes together."""
    return f1(*(part.sum(axis=-1) for part in _split(sums)))


def macro_f1(sums: Array) -> Array:
    """The mean of the F1 of all classes that occur."""
    right, predicted, actual = _split(sums)
    return divide(f1(right, predicted, actual).sum(axis=-1), (predicted + actual > 0).sum(axis=-1).astype(np.float64))


def weighted_f1(sums: Array) -> Array:
    """The mean of the F1 of all classes, weighted by their support."""
    right, predicted, actual = _split(sums)
    return divide((f1(right, predicted, actual) * actual).sum(axis=-1), actual.sum(axis=-1))


def _mcc(sums: Array) -> Array:
    """Matthews' correlation coefficient of any number of classes (Gorodkin 2004)."""
    right, predicted, actual = _split(sums)
    rows = actual.sum(axis=-1)
    covariance = right.sum(axis=-1) * rows - (predicted * actual).sum(axis=-1)
    variances = (rows**2 - (predicted**2).sum(axis=-1)) * (rows**2 - (actual**2).sum(axis=-1))
    return divide(covariance, np.sqrt(variances))


def _split(sums: Array) -> tuple[Array, Array, Array]:
    right, predicted, actual = np.split(sums, 3, axis=-1)
    return right, predicted, actual


Tags = Sequence[Sequence[str]]


class EntitySpan(NamedTuple):
    """The words of an entity, such as a person's name."""

    kind: str
    start: int
    end: int
    """Behind its last word."""


def tagging(references: Tags, predictions: Tags) -> Measured:
    """F1, precision and recall of whole entities of the right kind, and the accuracy of single tags."""
    kinds, counts = entity_counts(references, predictions)
    right = [
        sum(tag == predicted for tag, predicted in zip(*rows, strict=True))
        for rows in zip(references, predictions, strict=True)
    ]
    metrics = {
        "entity_f1": Metric(counts, micro_f1, UNIT),
        "precision": Metric(counts, _precision, UNIT),
        "recall": Metric(counts, _recall, UNIT),
        "accuracy": replace(ratio(right, [len(row) for row in references]), bounds=UNIT),
    }
    return metrics, class_table(counts, kinds)


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
    right, predicted, _ = _split(sums)
    return divide(right.sum(axis=-1), predicted.sum(axis=-1))


def _recall(sums: Array) -> Array:
    right, _, actual = _split(sums)
    return divide(right.sum(axis=-1), actual.sum(axis=-1))
