"""How far a run is, and its learning rate there.

Both kinds of run, so many steps or so many seconds, are described by one number, the progress from 0 to 1; the
learning rate is a function of it, so a run that ends by the clock anneals like any other.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Protocol

FLOOR = 0.1
"""The last learning rate, as a share of the peak."""


class Horizon(Protocol):
    """When a run ends."""

    def progress(self, step: int) -> float:
        """How much of the run will be done after this step (from 0), which is about to start; above 1: it is over."""
        ...


class Steps:
    """A run of a number of steps."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def progress(self, step: int) -> float:
        """See `Horizon`."""
        return (step + 1) / self.steps


class Clock:
    """A run of a number of seconds, from its first step on. A step that would end too late is not begun.

    Args:
        seconds: how long the steps may take in all; there is always one.
        now: the clock.
    """

    def __init__(self, seconds: float, now: Callable[[], float] = time.monotonic) -> None:
        self.seconds = seconds
        self._now = now
        self._start = self._latest = 0.0

    def progress(self, step: int) -> float:
        """See `Horizon`. The step is expected to take as long as the one before."""
        now = self._now()
        if step == 0:
            self._start = self._latest = now
            return 0.0
        took, self._latest = now - self._latest, now
        return (now - self._start + took) / self.seconds


def learning_rate_factor(progress: float, warmup: float) -> float:
    """The learning rate as a share of its peak: a linear rise, then a cosine down to `FLOOR`.

    Args:
        progress: in [0, 1].
        warmup: the share of the run in which it rises.
    """
    if progress < warmup:
        return progress / warmup
    falling = (progress - warmup) / (1 - warmup)
    return FLOOR + (1 - FLOOR) * 0.5 * (1 + math.cos(math.pi * falling))
