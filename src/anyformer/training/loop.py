"""The training loop."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import count
from typing import Self

from anyformer.data.batch import Batch
from anyformer.errors import UserError
from anyformer.runs.metrics import StepReport
from anyformer.training.schedule import Budget
from anyformer.training.strategies.base import Strategy


class DivergedError(UserError):
    """The loss or the gradient is no longer a number, so training on makes no sense."""

    @classmethod
    def after(cls, step: int, what: str) -> Self:
        """Say what went wrong, and what to try."""
        return cls(f"Training diverged: after step {step} {what}. Try a smaller --learning-rate or a longer --warmup.")


def train_steps(
    strategy: Strategy,
    batch: Callable[[int], Batch],
    budget: Budget,
    learning_rate: Callable[[float], float],
    *,
    start: int = 0,
) -> Iterator[StepReport]:
    """Train until the budget, reporting every step. Whoever takes the reports logs, saves, and may stop.

    Args:
        strategy: trains its model in place.
        batch: what a step, counted from 0, is trained on.
        budget: when to end.
        learning_rate: as a function of the progress.
        start: the number of steps that were taken before.

    Raises:
        DivergedError: the loss or the gradient is not finite; that step is not taken.
    """
    for step in count(start):
        progress = budget.progress(step)
        if progress > 1:
            return
        data = batch(step)
        rate = learning_rate(progress)
        done = strategy.step(step, data, rate)
        for name, value in (("loss", done.loss), ("gradient", done.gradient_norm)):
            if not math.isfinite(value):
                raise DivergedError.after(step, f"the {name} is {value}")
        source = 0 if data.source is None else data.source.size
        yield StepReport(step + 1, done.loss, rate, done.gradient_norm, data.tokens.size + source, source, progress)
