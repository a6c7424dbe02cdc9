"""The training loop."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count
from typing import Self

import torch
from torch import Tensor, nn

from anyformer.data.objectives import Batch
from anyformer.errors import UserError
from anyformer.model import Transformer
from anyformer.training.optimiser import set_learning_rate
from anyformer.training.precision import Precision
from anyformer.training.schedule import Horizon, learning_rate_factor


class DivergedError(UserError):
    """The loss or the gradient is no longer a number, so training on makes no sense."""

    @classmethod
    def after(cls, step: int, what: str) -> Self:
        """Say what went wrong, and what to try."""
        return cls(f"Training diverged: after step {step} {what}. Try a smaller --learning-rate or a longer --warmup.")


@dataclass(frozen=True, slots=True)
class StepReport:
    """What a step did.

    Attributes:
        step: its number, from 1.
        loss: mean over the predicted tokens, in nats, before the step.
        gradient_norm: before clipping.
        tokens: that were read.
        progress: how much of the run is done, in [0, 1].
    """

    step: int
    loss: float
    learning_rate: float
    gradient_norm: float
    tokens: int
    progress: float


def train_steps(
    model: Transformer,
    batch: Callable[[int], Batch],
    optimiser: torch.optim.Optimizer,
    horizon: Horizon,
    precision: Precision,
    *,
    learning_rate: float,
    warmup: float,
    clip: float,
) -> Iterator[StepReport]:
    """Train until the horizon, reporting every step. Whoever takes the reports logs, saves, and may stop.

    Args:
        model: is trained in place.
        batch: what a step, counted from 0, is trained on.
        optimiser: of the model.
        horizon: when to end.
        precision: where and how to compute.
        learning_rate: the peak.
        warmup: the share of the run in which the learning rate rises.
        clip: the longest gradient.

    Raises:
        DivergedError: the loss or the gradient is not finite; that step is not taken.
    """
    model.train()
    for step in count():
        progress = horizon.progress(step)
        if progress > 1:
            return
        rate = learning_rate * learning_rate_factor(progress, warmup)
        set_learning_rate(optimiser, rate)
        data = batch(step)
        with precision.autocast():
            loss = model(**model_inputs(data, precision.device)).loss
        loss.backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), clip)
        report = StepReport(step + 1, loss.item(), rate, norm.item(), data.tokens.size, progress)
        _check(report)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        yield report


def model_inputs(batch: Batch, device: torch.device) -> dict[str, Tensor]:
    """The arguments of `Transformer.forward`, whose names are those of a batch's fields."""
    fields = {field.name: getattr(batch, field.name) for field in dataclasses.fields(batch)}
    return {name: torch.from_numpy(array).to(device) for name, array in fields.items() if array is not None}


def _check(report: StepReport) -> None:
    for name, value in (("loss", report.loss), ("gradient", report.gradient_norm)):
        if not math.isfinite(value):
            raise DivergedError.after(report.step - 1, f"the {name} is {value}")
