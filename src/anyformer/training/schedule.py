"""Progress of a run, and its learning rate there.

Both kinds of run, of a number of steps or of seconds, are described by one number, the progress from 0 to 1; the
learning rate is a function of it, so a run that ends by the clock anneals like any other.
"""

import math
import statistics
import time
from collections import deque
from collections.abc import Callable

from anyformer.errors import UserError, nearest, quote

SCHEDULES = ("cosine", "linear", "inverse_sqrt", "wsd")

FLOOR = 0.1
"""The last learning rate of a cosine, as a share of the peak."""

_RECENT = 15
"""Steps whose median length is expected of the next one."""


class StepBudget:
    """A run of a number of steps."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def progress(self, step: int) -> float:
        """Share of the run that will be done after this step (from 0), which is about to start; above 1: it is over."""
        return (step + 1) / self.steps


class TimeBudget:
    """A run of a number of seconds, from its first step on. A step that would end too late is not begun.

    Everything between the steps counts as well. The next step is expected to take the median of the latest ones, so
    a pause, for an evaluation or a checkpoint, doesn't end the run early; neither does the first step, which compiles.

    Args:
        seconds: limit of the time of all steps; a new run always has one step.
        elapsed: seconds that a resumed run had taken when it was stopped.
        broadcast: returns the first process's value in all processes, whose clocks differ.
    """

    def __init__(
        self,
        seconds: float,
        elapsed: float = 0.0,
        now: Callable[[], float] = time.monotonic,
        broadcast: Callable[[float], float] = lambda progress: progress,
    ) -> None:
        self.seconds = seconds
        self._broadcast = broadcast
        self._before = elapsed
        self._now = now
        self._start: float | None = None
        self._latest: float | None = None
        self._took = deque[float](maxlen=_RECENT)

    def progress(self, step: int) -> float:
        """As that of a `StepBudget`, the same in all processes."""
        now = self._now()
        if self._start is None:
            self._start = now
            return self._broadcast(self._before / self.seconds)
        if self._latest is not None:
            self._took.append(now - self._latest)
        self._latest = now
        expected = statistics.median(self._took) if self._took else 0.0
        return self._broadcast((self._before + now - self._start + expected) / self.seconds)


def learning_rate_factor(name: str, progress: float, *, warmup: float, decay: float = 0.2) -> float:
    """The learning rate as a share of its peak: a linear rise, then the schedule's fall.

    Args:
        name: one of `SCHEDULES`: `cosine` falls to `FLOOR`, `linear` to 0, `inverse_sqrt` with one over the root of
            the steps (Vaswani et al. 2017, section 5.3), and `wsd` (warmup, stable, decay) stays at the peak and ends
            with ``1 - sqrt`` to 0 (Hägele et al. 2024).
        progress: in [0, 1].
        warmup: the share of the run in which it rises.
        decay: the share of the run, at its end, in which `wsd` falls.

    Raises:
        UserError: see `check_schedule`.
    """
    check_schedule(name, warmup, decay)
    if progress < warmup:
        return progress / warmup
    falling = (progress - warmup) / (1 - warmup)
    if name == "cosine":
        return FLOOR + (1 - FLOOR) * 0.5 * (1 + math.cos(math.pi * falling))
    if name == "linear":
        return 1 - falling
    if name == "inverse_sqrt":
        return math.sqrt(warmup / (warmup + falling * (1 - warmup)))
    left = (1 - falling) * (1 - warmup)
    return 1.0 if left >= decay else 1 - math.sqrt(1 - left / decay)


def check_schedule(name: str, warmup: float, decay: float = 0.2) -> None:
    """Raises UserError where there is no schedule of that name, or its parts don't fit into the run."""
    if name not in SCHEDULES:
        raise UserError(f"There is no schedule {quote(name)} ({nearest(name, SCHEDULES)}).")
    if not 0 <= warmup < 1:
        raise UserError(f"--warmup {warmup} is a share of the run, in [0, 1).")
    if name == "inverse_sqrt" and warmup == 0:
        raise UserError("--schedule inverse_sqrt falls from where the rise ends: give it a --warmup above 0.")
    if name == "wsd" and not (decay >= 0 and warmup + decay <= 1):
        raise UserError(
            f"--decay {decay} is a share of the run, and with --warmup {warmup} there is none left: "
            "together they can be 1 at most."
        )
