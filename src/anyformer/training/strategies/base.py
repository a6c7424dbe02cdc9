"""What every engine does for the trainer."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from anyformer.data.batch import Batch
from anyformer.model import Transformer
from anyformer.training.averaging import Average
from anyformer.training.precision import Precision
from anyformer.training.strategies.group import Group


@dataclass(frozen=True, slots=True)
class Plan:
    """How a step is taken, the same for every engine.

    Attributes:
        precision: where and in which format to compute.
        optimizer: makes the optimizer of a model's parameters, once they are where they will stay.
        average: what averages the weights; None for nothing.
        grad_clip: the longest gradient.
        grad_accumulation: how many parts a batch is computed in.
        label_smoothing: share of each target that is spread over the vocabulary.
        seed: decides dropout.
        compile: compile the stacks.
        gradient_checkpointing: compute the activations of each block again on the way back, instead of keeping them.
    """

    precision: Precision
    optimizer: Callable[[Transformer], torch.optim.Optimizer]
    average: Average | None = None
    grad_clip: float = 1.0
    grad_accumulation: int = 1
    label_smoothing: float = 0.0
    seed: int = 0
    compile: bool = False
    gradient_checkpointing: bool = False


@dataclass(frozen=True, slots=True)
class Step:
    """What a step did.

    Attributes:
        loss: mean over all predicted tokens of the batch, in nats, before the step.
        gradient_norm: before clipping; 0 where float16's loss scale was too large and the step was left out.
    """

    loss: float
    gradient_norm: float


class LossModule(nn.Module):
    """A model whose only output is its loss, so that an engine that watches outputs sees what has a part in it."""

    def __init__(self, model: Transformer) -> None:
        super().__init__()
        self.model = model

    def forward(self, **inputs: Any) -> Tensor:
        """See `Transformer.forward`."""
        # Not model(...): DeepSpeed watches the outputs of every module that is called, and can't look into this one's.
        loss = self.model.forward(**inputs).loss
        if loss is None:
            raise ValueError("a loss needs targets")
        return loss


class Strategy(Protocol):
    """Takes steps of one model on any number of processes, each of which calls the same methods in the same order.

    A batch is always the whole batch of all processes, so nothing depends on how many there are. Dropout is drawn from
    (seed, step, part, process), so there is no generator to save.

    Attributes:
        group: those processes.
    """

    group: Group

    def step(self, number: int, batch: Batch, learning_rate: float) -> Step:
        """Learn from a batch. Where loss or gradient are not finite, the weights stay as they are.

        Args:
            number: of the step, from 0.
            batch: of all processes.
            learning_rate: of this step.
        """
        ...

    def evaluate(self, batch: Batch) -> float:
        """The summed loss of a batch in nats, over all processes; nothing changes."""
        ...

    def averaged(self) -> AbstractContextManager[None]:
        """In here the weights are the averaged ones, where there is an average."""
        ...

    def gathered(self) -> AbstractContextManager[Transformer | None]:
        """An ordinary model with the whole weights (the averaged ones, where there is an average), to save or to ask.

        It is None on all processes but the first.
        """
        ...

    def snapshot(self) -> None:
        """Offer the weights to an average of snapshots, such as that of the latest five."""
        ...

    def save(self, folder: Path) -> None:
        """Write everything that the next step depends on into a folder, as safetensors: of this process its share."""
        ...

    def load(self, folder: Path) -> None:
        """Read what `save` wrote, on any number of processes. Raises UserError where it does not fit the model."""
        ...

    def close(self) -> None:
        """Let go of what is shared, before the group is left."""
        ...

    def __str__(self) -> str:
        """What is active, for people: `ddp, 2 processes (gloo)`."""
        ...
