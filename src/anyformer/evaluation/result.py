"""The result of an evaluation."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from anyformer.data.formats import Location
from anyformer.evaluation.metrics import ClassScores, Interval, Metric
from anyformer.evaluation.spans import TaggedSpans
from anyformer.one_line import OneLine

Scores = dict[str, float]
"""Metrics by name."""


@dataclass(frozen=True, slots=True, repr=False)
class EvaluatedRow(OneLine):
    """An example, and what a model said.

    Attributes:
        text: What it was asked.
        reference: What is right.
        prediction: What it said.
        loss: How wrong that is, to be compared within an evaluation; usually the negative log-likelihood in nats.
        right: Whether that is right; None: there is more than right and wrong.
        spans: Of a tagged sentence, its entities.
    """

    location: Location
    text: str
    reference: str
    prediction: str
    loss: float
    right: bool | None = None
    spans: TaggedSpans | None = None


@dataclass(frozen=True, repr=False)
class Confusion(OneLine):
    """How often each label (row) was taken for each other one (column)."""

    labels: Sequence[str]
    matrix: npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Evaluation(OneLine, dict[str, float]):
    """The metrics of a task by name, a dict of numbers; its attributes say more.

    Attributes:
        task: That of the examples.
        metrics: By name, the main one first; each has a `value` and an `interval`.
        rows: In the order of the data.
        classes: Of labels and entities, the scores of each.
        confusion: Of one label a row.
        notes: What should be known about the figures, in sentences.
    """

    shown: ClassVar = ("task", "metrics")

    task: str = ""
    metrics: Mapping[str, Metric]
    rows: Sequence[EvaluatedRow] = ()
    classes: Sequence[ClassScores] = ()
    confusion: Confusion | None = None
    notes: Sequence[str] = field(default=())

    def __post_init__(self) -> None:
        self.update({name: metric.value for name, metric in self.metrics.items()})

    def intervals(self, confidence: float = 0.95) -> dict[str, Interval]:
        """The interval of each metric; NaN where it isn't known."""
        return {name: metric.interval(confidence) for name, metric in self.metrics.items()}

    def differences(self, after: "Evaluation", confidence: float = 0.95) -> dict[str, Interval]:
        """The interval of what another model gains in each metric on the same rows."""
        return {
            name: metric.difference(after.metrics[name], confidence)
            for name, metric in self.metrics.items()
            if name in after.metrics
        }

    def worst(self, count: int = 10) -> list[EvaluatedRow]:
        """Short rows that the model is most wrong about, see `telling`."""
        return [self.rows[index] for index in telling(self.rows, count)]


def telling(rows: Sequence[EvaluatedRow], count: int) -> list[int]:
    """Indices of rows that show in few words what a model gets wrong, the highest loss first.

    They are the shortest of those that aren't right and whose loss is among the highest quarter; of few, or of equal
    ones, more.
    """
    wrong = sorted((index for index, row in enumerate(rows) if not row.right), key=lambda index: -rows[index].loss)
    if not wrong or count < 1:
        return []
    least = rows[wrong[min(len(wrong) - 1, max(count, len(wrong) // 4) - 1)]].loss
    high = [index for index in wrong if rows[index].loss >= least]
    shortest = sorted(high, key=lambda index: len(rows[index].text))[:count]
    return sorted(shortest, key=lambda index: -rows[index].loss)
