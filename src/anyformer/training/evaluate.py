"""The loss over a validation text."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch

from anyformer.data.objectives import Batch
from anyformer.model import Transformer
from anyformer.training.loop import model_inputs
from anyformer.training.precision import Precision


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What a model makes of a text.

    Attributes:
        nats: the loss of all predictions together.
        predicted: how many there were.
        seconds: how long it took.
    """

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
    model: Transformer,
    batches: Iterable[Batch],
    precision: Precision,
    stop: Callable[[], bool] = lambda: False,
) -> Evaluation:
    """Evaluate a model without changing it; it is in training mode afterwards if it was before.

    Args:
        model: any that learns from targets.
        batches: such as `validation_batches` makes, of at least one target in all.
        precision: where and how to compute.
        stop: asked after every batch whether to end early.
    """
    start = time.monotonic()
    training = model.training
    model.eval()
    nats, predicted = 0.0, 0
    with torch.inference_mode():
        for batch in batches:
            count = batch.predicted
            if count:
                with precision.autocast():
                    loss = model(**model_inputs(batch, precision.device)).loss
                nats += float(loss) * count
                predicted += count
            if predicted and stop():
                break
    model.train(training)
    return Evaluation(nats, predicted, time.monotonic() - start)
