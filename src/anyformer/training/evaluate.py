"""The loss over a validation text."""

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from anyformer.data.batch import Batch


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The loss of all `predicted` tokens together, in nats, and the seconds that this took."""

    nats: float
    predicted: int
    seconds: float

    @property
    def loss(self) -> float:
        """Mean loss of a prediction, in nats."""
        return self.nats / self.predicted

    def bits_per_byte(self, tokens: int, size: int) -> float:
        """The bits that a compressor with this model would need for a byte of the text (causal models only).

        Args:
            tokens: of the text in all, of which all but the first are predicted.
            size: of the text in bytes of UTF-8. Where not all of it was evaluated, that share of them counts.
        """
        return self.nats / math.log(2) / (size * self.predicted / (tokens - 1))


def evaluate(
    nats: Callable[[Batch], float], batches: Iterable[Batch], stop: Callable[[], bool] = lambda: False
) -> Evaluation:
    """Evaluate a model.

    Args:
        nats: the summed loss of a batch, such as `Engine.evaluate`.
        batches: such as `validation_batches` makes, of at least one target in all.
        stop: asked after every batch whether to end early.
    """
    start = time.monotonic()
    total, predicted = 0.0, 0
    for batch in batches:
        if batch.predicted:
            total += nats(batch)
            predicted += batch.predicted
        if stop() and predicted:
            break
    return Evaluation(total, predicted, time.monotonic() - start)
