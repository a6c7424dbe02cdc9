"""One label, or several, for each row: accuracy, F1 and Matthews' correlation, as scikit-learn defines them."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import numpy.typing as npt

from anyformer.evaluation.metrics.metric import UNIT, Array, Metric, divide, share

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


def classification(
    references: Sequence[str], predictions: Sequence[str], labels: Sequence[str] = ()
) -> dict[str, Metric]:
    """Accuracy, F1 and Matthews' correlation coefficient of one label for each row.

    With two labels F1 is that of the second one, as scikit-learn's of class 1; with more it is the mean of the classes
    (macro), and f1_weighted is weighted by their support. Classes that are neither in the references nor in the
    predictions don't count.

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
    return metrics | {"mcc": Metric(rows, _mcc, (-1.0, 1.0))}


def multilabel(
    references: Sequence[Collection[str]], predictions: Sequence[Collection[str]], labels: Sequence[str] = ()
) -> dict[str, Metric]:
    """Micro and macro F1 of several labels for each row, and the share of rows that have exactly their labels."""
    labels = all_labels([*chain(*references)], [*chain(*predictions)], labels)
    rows = class_counts(references, predictions, labels)
    exact = share([set(right) == set(names) for right, names in zip(references, predictions, strict=True)])
    return {"f1": Metric(rows, micro_f1, UNIT), "f1_macro": Metric(rows, macro_f1, UNIT), "exact_match": exact}


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
    """Precision, recall, F1 and support of each class, from `class_counts` or their sum."""
    right, predicted, actual = _split(counts.sum(axis=0) if counts.ndim > 1 else counts)
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
