"""Options and the result of an evaluation."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from anyformer.data.formats import Location
from anyformer.errors import UserError
from anyformer.evaluation.label_metrics import ClassScores, TaggedSpans
from anyformer.evaluation.metrics import Interval, Metric
from anyformer.one_line import OneLine

Scores = dict[str, float]
"""Metrics by name."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of an evaluation of examples.

    Attributes:
        choices: chat, completion: The answers to choose from, by their log-probability. Empty: answers are generated.
        max_new_tokens: Of a generated answer; None: as many as the context has room for, at most 200.
        batch_size: Answers that are generated at a time.
        rouge: chat, completion: Compare answers by ROUGE.
        skip_missing: Leave out the metrics whose library isn't installed, and say so in a note.
        progress: Called after each batch with what is done, the number of its examples, and that of all examples.
    """

    choices: Sequence[str] = ()
    max_new_tokens: int | None = None
    batch_size: int = 16
    rouge: bool = True
    skip_missing: bool = False
    progress: Callable[[str, int, int], None] = field(default=lambda what, count, total: None)

    def __post_init__(self) -> None:
        for name in ("max_new_tokens", "batch_size"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise UserError(f"{name} is at least 1, not {value}.")
        if len(set(self.choices)) != len(self.choices) or len(self.choices) == 1:
            raise UserError("choices are at least two answers, each different from the others.")

    def counter(self, what: str, total: int) -> Callable[[int], None]:
        """A function to call with the number of examples that have been done, of `total`."""
        return lambda count: self.progress(what, count, total)


@dataclass(frozen=True, slots=True, repr=False)
class EvaluatedRow(OneLine):
    """An example, and the answer of a model.

    Attributes:
        text: The question.
        reference: The right answer.
        prediction: The model's answer.
        loss: How wrong that is, to be compared within an evaluation; usually the negative log-likelihood in nats.
        right: Whether it is right; None: there is more than right and wrong.
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
    """Counts of rows by their label (row) and the one they were taken for (column)."""

    labels: Sequence[str]
    matrix: npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Evaluation(OneLine, dict[str, float]):
    """The metrics of a task by name, a dict of numbers; its attributes say more.

    Attributes:
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
