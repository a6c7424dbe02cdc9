"""Result of a task."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskResult:
    """The scores of one model on one task.

    Items are the same, in the same order, for every model that is compared, so that differences can be judged in pairs.

    Attributes:
        name: Of the task, such as ``minimal_pairs``.
        measure: What the scores are, for people, such as ``accuracy``.
        chance: The mean that guessing has.
        items: The score of each item, from 0 (wrong) to 1 (right); empty where the task was left out.
        parts: The mean of each kind of item, or other figures of the same task, by name.
        controls: The scores of the same items by what the model is to be measured against, such as a bag of words.
        reason: Why the task was left out, one sentence; None: it wasn't.
    """

    name: str
    measure: str
    chance: float
    items: tuple[float, ...] = ()
    parts: Mapping[str, float] = field(default_factory=dict[str, float])
    controls: Mapping[str, tuple[float, ...]] = field(default_factory=dict[str, tuple[float, ...]])
    reason: str | None = None

    @property
    def mean(self) -> float:
        """The mean score; NaN without items."""
        return math.fsum(self.items) / len(self.items) if self.items else math.nan
