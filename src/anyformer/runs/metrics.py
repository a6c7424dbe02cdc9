"""What is written to metrics.jsonl while a model trains."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

from anyformer.analysis import TrainingFlops


@dataclass(frozen=True, slots=True)
class StepReport:
    """What a step did.

    Attributes:
        step: its number, from 1.
        loss: mean over the predicted tokens, in nats, before the step.
        gradient_norm: before clipping.
        tokens: that were read, those of a source among them.
        source_tokens: of a source alone.
        progress: how much of the run is done, in [0, 1].
    """

    step: int
    loss: float
    learning_rate: float
    gradient_norm: float
    tokens: int
    source_tokens: int
    progress: float


class Meter:
    """Gathers steps into the lines of metrics.jsonl.

    Args:
        flops: that a training step takes for each token.
        state: of the meter of a run that goes on, as `state` gave it.

    Attributes:
        loss: mean over the steps since the latest line, in nats.
        tokens: read since training began.
        tokens_per_second: over the steps since the latest line.
    """

    def __init__(self, flops: TrainingFlops, state: Mapping[str, float] | None = None) -> None:
        found = state or {}
        self.flops = flops
        self.tokens = int(found.get("tokens", 0))
        self.loss = self.tokens_per_second = 0.0
        self._steps, self._tokens = int(found.get("line_steps", 0)), int(found.get("line_tokens", 0))
        self._losses, self._seconds = found.get("line_losses", 0.0), found.get("line_seconds", 0.0)
        self._flops = found.get("line_flops", 0.0)
        self._since = time.monotonic()
        self._start = self._since - found.get("elapsed", 0.0)

    @property
    def elapsed(self) -> float:
        """Seconds since training began, those in which a run was interrupted left out."""
        return time.monotonic() - self._start

    def state(self) -> dict[str, float]:
        """What a meter needs to go on."""
        return {
            "tokens": self.tokens,
            "line_steps": self._steps,
            "line_tokens": self._tokens,
            "line_losses": self._losses,
            "line_seconds": self._seconds,
            "line_flops": self._flops,
            "elapsed": self.elapsed,
        }

    def resume(self) -> None:
        """Leave out of the speed what went on since the latest step."""
        self._since = time.monotonic()

    def add(self, report: StepReport) -> None:
        """Take a step in."""
        now = time.monotonic()
        self._seconds += now - self._since
        self._since = now
        self._steps += 1
        self._losses += report.loss
        self._tokens += report.tokens
        read = report.tokens - report.source_tokens
        self._flops += self.flops.source * report.source_tokens + self.flops.token * read
        self.tokens += report.tokens
        self.loss = self._losses / self._steps
        self.tokens_per_second = self._tokens / max(self._seconds, 1e-9)

    def line(self, report: StepReport) -> dict[str, float | int]:
        """The line for the steps since the latest one, of which `report` is the last."""
        line = {
            "step": report.step,
            "loss": self.loss,
            "learning_rate": report.learning_rate,
            "gradient_norm": report.gradient_norm,
            "tokens": self.tokens,
            "tokens_per_second": self.tokens_per_second,
            "flops_per_second": self._flops / max(self._seconds, 1e-9),
            "elapsed": self.elapsed,
        }
        self._steps = self._tokens = 0
        self._losses = self._seconds = self._flops = 0.0
        return line
