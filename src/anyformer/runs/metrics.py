"""Records of metrics.jsonl."""

import time
from collections.abc import Mapping, Sequence

from anyformer.analysis import TrainingFlops


class Meter:
    """Gathers steps into the lines of metrics.jsonl.

    What the host knows of a step is added when it begins; its loss and gradient norm may be read later, of several
    steps together.

    Args:
        flops: that a training step takes for each token.
        state: of the meter of a run that goes on, as `state` gave it.

    Attributes:
        loss: mean over the steps that were read since the latest line.
        tokens: read since training began.
        tokens_per_second: over the steps since the latest line.
    """

    def __init__(self, flops: TrainingFlops, state: Mapping[str, float] | None = None) -> None:
        found = state or {}
        self.flops = flops
        self.tokens = int(found.get("tokens", 0))
        self.loss = self.tokens_per_second = 0.0
        self._learning_rate = self._gradient_norm = 0.0
        self._steps, self._tokens = int(found.get("line_steps", 0)), int(found.get("line_tokens", 0))
        self._losses, self._seconds = found.get("line_losses", 0.0), found.get("line_seconds", 0.0)
        self._flops = found.get("line_flops", 0.0)
        self._since = time.monotonic()
        self._start = self._since - found.get("elapsed", 0.0)

    def start(self) -> None:
        """Training begins now: what was done since the meter was made, such as an evaluation, doesn't count."""
        now = time.monotonic()
        self._start += now - self._since
        self._since = now

    @property
    def elapsed(self) -> float:
        """Seconds since training began, those in which a run was interrupted left out."""
        return time.monotonic() - self._start

    def state(self) -> dict[str, float]:
        """The state from which a meter goes on."""
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

    def add(self, learning_rate: float, tokens: int, source_tokens: int) -> None:
        """Take a step in: its learning rate, the tokens that it reads, and those of a source beside them."""
        self._learning_rate = learning_rate
        self._tokens += tokens + source_tokens
        self._flops += self.flops.source * source_tokens + self.flops.token * tokens
        self.tokens += tokens + source_tokens

    def read(self, results: Sequence[Sequence[float]]) -> None:
        """Take in loss and gradient norm of the steps that were added since the latest call."""
        now = time.monotonic()
        self._seconds += now - self._since
        self._since = now
        for loss, norm in results:
            self._steps += 1
            self._losses += loss
            self._gradient_norm = norm
        self.loss = self._losses / self._steps
        self.tokens_per_second = self._tokens / max(self._seconds, 1e-9)

    def line(self, step: int) -> dict[str, float | int]:
        """The line for the steps since the latest one, of which this is the last; all of them have been read."""
        line = {
            "step": step,
            "loss": self.loss,
            "learning_rate": self._learning_rate,
            "gradient_norm": self._gradient_norm,
            "tokens": self.tokens,
            "tokens_per_second": self.tokens_per_second,
            "flops_per_second": self._flops / max(self._seconds, 1e-9),
            "elapsed": self.elapsed,
        }
        self._steps = self._tokens = 0
        self._losses = self._seconds = self._flops = 0.0
        return line
