"""Cost of a step, and the number of steps that a budget allows."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import count

from anyformer.analysis import step_flops
from anyformer.compare.windows import Windows, cut
from anyformer.config import ModelConfig
from anyformer.data.batch import Batch, Int64
from anyformer.data.batches import Batches
from anyformer.data.masked import PROBABILITY
from anyformer.data.span_corruption import SpanCorruption
from anyformer.errors import UserError

KINDS = ("tokens", "flops", "minutes")
TRIAL = 0.1
"""Share of one seed's budget for each learning rate that is tried."""


@dataclass(frozen=True)
class Budget:
    """The budget of each candidate and seed.

    Attributes:
        kind: tokens of text, floating-point operations of training, or minutes of it.
        amount: so many.
    """

    kind: str
    amount: float

    def __str__(self) -> str:
        """For people."""
        return f"{self.amount:,.6g} {'FLOPs' if self.kind == 'flops' else self.kind}"

    def share(self, share: float) -> "Budget":
        """A part of it."""
        return replace(self, amount=self.amount * share)

    def require_step(self, config: ModelConfig, batch: Batch, tokens: int, seconds: float | None) -> None:
        """Raises UserError where it is too small for one step.

        Args:
            batch: of that step.
            tokens: of text that the batch has.
            seconds: of a step, where the budget is of minutes.
        """
        spent = self.spent(config, batch, tokens, seconds)
        if spent > self.amount:
            raise UserError(
                f"A budget of {self} is too small for one step, which takes {spent:,.4g}: raise --{self.kind}, or "
                "lower --batch-size or --context."
            )

    def spent(self, config: ModelConfig, batch: Batch, tokens: int, seconds: float | None) -> float:
        """By one step."""
        if self.kind == "minutes":
            return (seconds or 0.0) / 60
        return float(tokens if self.kind == "tokens" else batch_flops(config, batch))


@dataclass(frozen=True)
class Allowance:
    """Steps of a run within its budget, and their cost.

    Attributes:
        steps: how many.
        tokens: of text in all of them.
        flops: of all of them.
        digest: SHA-256 of the ids of all windows in order, restored from what the model reads and predicts.
    """

    steps: int
    tokens: int
    flops: float
    digest: str


def batch_flops(config: ModelConfig, batch: Batch) -> int:
    """Floating-point operations of a training step on a batch."""
    rows, tokens = batch.tokens.shape
    source = 0 if batch.source is None else batch.source.shape[1]
    return _step_flops(config, rows, tokens, source, batch.predicted)


_step_flops = lru_cache(maxsize=1 << 12)(step_flops)


def flops_per_token(config: ModelConfig, window: int) -> float:
    """Operations of training for a token of text, as the mean over what a model does with windows."""
    shapes = _shapes(config, window)
    return sum(_step_flops(config, 1, *shape) for shape in shapes) / len(shapes) / window


def _shapes(config: ModelConfig, window: int) -> list[tuple[int, int, int]]:
    """Tokens, tokens of the source, and targets of a row, of each kind of batch."""
    if config.is_encoder_only:
        return [(window + 2, 0, max(1, round(PROBABILITY * window)))]
    if config.is_encoder_decoder:
        source, targets = SpanCorruption((), 0, 0, 0).lengths(window)
        read = cut(window, 0.5)
        return [(targets, source, targets), (window - read, read + 1, window - read)]
    return [(window, 0, window)]


def allow(
    budget: Budget, config: ModelConfig, batches: Batches, windows: Windows, seconds: float | None = None
) -> Allowance:
    """How many steps a budget allows, and what they read.

    Of floating-point operations it is the number of steps that comes nearest: within half a step.

    Args:
        windows: the objective that `batches` has.
        seconds: of a step, where the budget is of minutes.

    Raises:
        UserError: it is too small for one step.
    """
    flops, tokens, steps, spent, digest = 0, 0, 0, 0.0, hashlib.sha256()
    for batch in _batches(batches):
        restored: Int64 = windows.reading.restore(batch)
        if steps == 0:
            budget.require_step(config, batch, restored.size, seconds)
        cost = budget.spent(config, batch, restored.size, seconds)
        if spent + cost / 2 > budget.amount:
            break
        spent, steps = spent + cost, steps + 1
        flops, tokens = flops + batch_flops(config, batch), tokens + restored.size
        digest.update(restored.tobytes())
    return Allowance(steps, tokens, flops, digest.hexdigest())


def _batches(batches: Batches) -> Iterator[Batch]:
    return (batches.batch(step) for step in count())
