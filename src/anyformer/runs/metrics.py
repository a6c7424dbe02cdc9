"""Metrics of training and of validation, as metrics.jsonl has them."""

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, SupportsFloat

from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

from anyformer.analysis import TrainingFlops
from anyformer.console import Console
from anyformer.data.batch import Batch
from anyformer.pages.formatting import clock

_LINES = 10
"""Lines on the progress of a run where there is no terminal."""


@dataclass
class _Sums:
    """Sums over the steps since the latest line."""

    steps: int = 0
    tokens: int = 0
    losses: float = 0.0
    seconds: float = 0.0
    flops: float = 0.0


class Meter:
    """Gathers steps into the lines of metrics.jsonl.

    Tokens and learning rate are added when a step begins; loss and gradient norm may be read later, of several steps
    together.

    Args:
        flops: that a training step takes for each token.
        state: of the meter of a run that goes on, as `state` gave it.

    Attributes:
        loss: mean over the steps that were read since the latest line.
        tokens: read since training began.
        tokens_per_second: over the steps since the latest line.
    """

    def __init__(self, flops: TrainingFlops, state: Mapping[str, float] | None = None) -> None:
        earlier: Mapping[str, Any] = state or {}
        self.flops = flops
        self.tokens = int(earlier.get("tokens", 0))
        self.loss = self.tokens_per_second = 0.0
        self._learning_rate = self._gradient_norm = 0.0
        self._sums = _Sums(**{name: earlier.get(f"line_{name}", 0) for name in vars(_Sums())})
        self._since = time.monotonic()
        self._start = self._since - earlier.get("elapsed", 0.0)

    def start(self) -> None:
        """Begin training now: what was done since the meter was made, such as an evaluation, doesn't count."""
        now = time.monotonic()
        self._start += now - self._since
        self._since = now

    @property
    def elapsed(self) -> float:
        """Seconds since training began, those in which a run was interrupted left out."""
        return time.monotonic() - self._start

    def state(self) -> dict[str, float]:
        """The state from which a meter goes on."""
        line = {f"line_{name}": value for name, value in vars(self._sums).items()}
        return {"tokens": self.tokens, **line, "elapsed": self.elapsed}

    def resume(self) -> None:
        """Leave the time since the latest step out of the speed."""
        self._since = time.monotonic()

    def add(self, learning_rate: float, tokens: int, source_tokens: int) -> None:
        """Take a step in: its learning rate, the tokens that it reads, and those of a source beside them."""
        self._learning_rate = learning_rate
        self._sums.tokens += tokens + source_tokens
        self._sums.flops += self.flops.source * source_tokens + self.flops.token * tokens
        self.tokens += tokens + source_tokens

    def read(self, results: Sequence[Sequence[float]]) -> None:
        """Take in loss and gradient norm of the steps that were added since the latest call."""
        sums, now = self._sums, time.monotonic()
        sums.seconds += now - self._since
        self._since = now
        for loss, norm in results:
            sums.steps += 1
            sums.losses += loss
            self._gradient_norm = norm
        self.loss = sums.losses / sums.steps
        self.tokens_per_second = sums.tokens / max(sums.seconds, 1e-9)

    def line(self, step: int) -> dict[str, float | int]:
        """The line for the steps since the latest one, of which this is the last; all of them have been read."""
        sums, self._sums = self._sums, _Sums()
        return {
            "step": step,
            "loss": self.loss,
            "learning_rate": self._learning_rate,
            "gradient_norm": self._gradient_norm,
            "tokens": self.tokens,
            "tokens_per_second": self.tokens_per_second,
            "flops_per_second": sums.flops / max(sums.seconds, 1e-9),
            "elapsed": self.elapsed,
        }


class TrainingProgress(Progress):
    """Loss, tokens a second, and time left. A context manager."""

    def __init__(self, console: Console) -> None:
        columns = (
            TextColumn("training", markup=False),
            BarColumn(24),
            TaskProgressColumn(),
            TextColumn("{task.fields[line]}", markup=False),
        )
        super().__init__(*columns, console=console, disable=not console.is_terminal)
        self._console = console
        self._task = self.add_task("training", total=1.0, line="")
        self._lines = 0

    def show(self, step: int, progress: float, meter: Meter) -> None:
        """Show a step that the meter has taken in; the loss and the speed are those that were read last."""
        left = clock(meter.elapsed * (1 - progress) / progress if progress > 0 else 0.0)
        speed = f"loss {meter.loss:.3f}  {meter.tokens_per_second:,.0f} tokens/s  " if meter.loss else ""
        line = f"step {step:,}  {speed}{left} left"
        self.update(self._task, completed=progress, line=line)
        if not self.console.is_terminal and int(progress * _LINES) > self._lines:
            self._lines = int(progress * _LINES)
            self._console.say(f"training   {progress:.0%}  {line}")


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The summed loss of all `predicted` tokens in nats, and the seconds that this took."""

    nats: float
    predicted: int
    seconds: float

    @property
    def loss(self) -> float:
        """Mean loss of a prediction, in nats."""
        return self.nats / self.predicted

    def bits_per_byte(self, tokens: int, size: int) -> float:
        """Bits that a compressor with this model would need for a byte of the text (causal models only).

        Args:
            tokens: number of tokens of the whole text, of which all but the first are predicted.
            size: bytes of the whole text in UTF-8. Where not all of it was evaluated, that share of them counts.
        """
        return self.nats / math.log(2) / (size * self.predicted / (tokens - 1))


def evaluate(
    nats: Callable[[Batch], SupportsFloat], batches: Iterable[Batch], stop: Callable[[], bool] = lambda: False
) -> Evaluation:
    """Evaluate a model.

    Args:
        nats: the summed loss of a batch, such as `Strategy.evaluate`. Numbers on a device are read at the end, so that
            it need not wait for the host.
        batches: such as `validation_batches` makes, of at least one target in all.
        stop: called after every batch; whether to end early.
    """
    start = time.monotonic()
    losses, predicted = list[SupportsFloat](), 0
    for batch in batches:
        if batch.predicted:
            losses.append(nats(batch))
            predicted += batch.predicted
        if stop() and predicted:
            break
    total = sum(map(float, losses))
    return Evaluation(total, predicted, time.monotonic() - start)
