"""What is written to metrics.jsonl while a model trains."""

from __future__ import annotations

import time

from anyformer.training.loop import StepReport


class Meter:
    """Gathers steps into the lines of metrics.jsonl.

    Attributes:
        loss: mean over the steps since the latest line, in nats.
        tokens: read since training began.
        tokens_per_second: over the steps since the latest line.
    """

    def __init__(self) -> None:
        self.start = time.monotonic()
        self.tokens = 0
        self.loss = self.tokens_per_second = 0.0
        self._steps = self._tokens = 0
        self._losses = self._seconds = 0.0
        self._since = self.start

    @property
    def elapsed(self) -> float:
        """Seconds since training began."""
        return time.monotonic() - self.start

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
        self.tokens += report.tokens
        self.loss = self._losses / self._steps
        self.tokens_per_second = self._tokens / max(self._seconds, 1e-9)

    def line(self, report: StepReport) -> dict[str, float | int]:
        """The line for the steps since the latest one, of which `report` is the last."""
        self._steps = self._tokens = 0
        self._losses = self._seconds = 0.0
        return {
            "step": report.step,
            "loss": self.loss,
            "learning_rate": report.learning_rate,
            "gradient_norm": report.gradient_norm,
            "tokens": self.tokens,
            "tokens_per_second": self.tokens_per_second,
            "elapsed": self.elapsed,
        }
