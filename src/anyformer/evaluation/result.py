"""What an evaluation found out."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from typing_extensions import override

from anyformer.data.examples import Task, Where
from anyformer.evaluation.metrics import ClassScores, Interval, Metric

Scores = dict[str, float]
"""Metrics by name."""


@dataclass(frozen=True, slots=True)
class EvaluatedRow:
    """An example, and what a model said.

    Attributes:
        text: What it was asked.
        reference: What is right.
        prediction: What it said.
        loss: How wrong that is, to be compared within an evaluation; usually the negative log-likelihood in nats.
        right: Whether that is right; None: there is more than right and wrong.
    """

    where: Where
    text: str
    reference: str
    prediction: str
    loss: float
    right: bool | None = None


@dataclass(frozen=True)
class Confusion:
    """How often each label (row) was taken for each other one (column)."""

    labels: Sequence[str]
    matrix: npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Evaluation(Mapping[str, float]):
    """The metrics of a task by name, as numbers; and with intervals, and the rows that they are of.

    Attributes:
        metrics: By name; each has a `value` and a bootstrap `interval`.
        rows: In the order of the data.
        classes: Of labels and entities, the scores of each.
        confusion: Of one label a row.
        notes: What should be known about the figures, in sentences.
    """

    task: Task
    metrics: Mapping[str, Metric]
    rows: Sequence[EvaluatedRow] = ()
    classes: Sequence[ClassScores] = ()
    confusion: Confusion | None = None
    notes: Sequence[str] = field(default=())

    @override
    def __getitem__(self, name: str) -> float:
        return self.metrics[name].value

    @override
    def __iter__(self) -> Iterator[str]:
        return iter(self.metrics)

    @override
    def __len__(self) -> int:
        return len(self.metrics)

    @override
    def __repr__(self) -> str:
        return repr(self.scores)

    @property
    def scores(self) -> Scores:
        """The metrics as a dict of numbers."""
        return dict(self)

    def intervals(self, confidence: float = 0.95) -> dict[str, Interval]:
        """The bootstrap interval of each metric."""
        return {name: metric.interval(confidence) for name, metric in self.metrics.items()}

    def differences(self, after: "Evaluation", confidence: float = 0.95) -> dict[str, Interval]:
        """The interval of what another model gains in each metric on the same rows."""
        return {
            name: metric.difference(after.metrics[name], confidence)
            for name, metric in self.metrics.items()
            if name in after.metrics
        }

    def worst(self, count: int = 10) -> list[EvaluatedRow]:
        """The rows with the highest loss, of those that aren't right."""
        wrong = [row for row in self.rows if not row.right]
        return sorted(wrong, key=lambda row: row.loss, reverse=True)[:count]
