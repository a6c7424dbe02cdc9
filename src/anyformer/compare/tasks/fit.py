"""A few steps of training, the same for every model."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from anyformer.training.optimizer import make_optimizer
from anyformer.training.schedule import learning_rate_factor

_WARMUP = 0.1
_WEIGHT_DECAY = 0.01
_GRAD_CLIP = 1.0


def fit(module: nn.Module, loss: Callable[[int], Tensor], steps: int, learning_rate: float) -> None:
    """Minimize a loss with AdamW: the learning rate rises over a tenth of the steps and falls linearly to 0.

    Args:
        module: Whose parameters are trained.
        loss: Of each step, counted from 0.
        steps: How many are taken.
        learning_rate: The highest.
    """
    optimizer = make_optimizer("adamw", module, learning_rate, weight_decay=_WEIGHT_DECAY, betas=(0.9, 0.999))
    module.train()
    for step in range(steps):
        factor = learning_rate_factor("linear", (step + 1) / (steps + 1), warmup=_WARMUP)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * factor
        loss(step).backward()
        nn.utils.clip_grad_norm_(module.parameters(), _GRAD_CLIP)
        optimizer.step()
        optimizer.zero_grad()
    module.eval()


def shuffled_batches(count: int, batch_size: int, seed: int) -> Iterator[list[int]]:
    """Endless batches of the numbers below `count`, each once in every pass."""
    rng = np.random.default_rng(seed)
    waiting = list[int]()
    while True:
        while len(waiting) < batch_size:
            waiting += rng.permutation(count).tolist()
        yield waiting[:batch_size]
        del waiting[:batch_size]


@contextmanager
def seeded(seed: int) -> Generator[None, None, None]:
    """Draw the same numbers each time, and leave torch's generators as they were."""
    devices = range(torch.cuda.device_count())
    with torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        yield
