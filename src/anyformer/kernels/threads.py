"""The number of threads while other programs compete for the cores.

The threads of a parallel region wait for the slowest of them, by spinning. Where another program takes a core, the
others wait as long, hundreds of times a step: two threads may then be slower than one. Threads that spin are always on
a core, unless somebody else is, so the time that they are not says when to try fewer; the speed says if that stays.
"""

import os
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager

_WINDOW = 0.5
"""Seconds that a speed is measured for, at least."""
_UNITS = 3
"""Units of work that a speed is measured over, at least."""
_BUSY = 0.25
"""Share of the time without a core from which fewer threads are tried; more are tried below it."""
_GAIN = 1.05
"""Ratio of two speeds from which more threads are kept; fewer are, unless they are slower by it."""
_PATIENCE, _MOST_PATIENCE = 4, 32
"""Windows until another number is tried: after one was kept, and at most; each failure doubles them."""


_latest: list[int] = []
"""The number that the latest loop of this process ended with: other programs rarely end between two."""


@contextmanager
def adaptive_threads(most: int, apply: Callable[[int], int | None]) -> Generator["AdaptiveThreads"]:
    """Context of a loop with `AdaptiveThreads`, which begins with the number that the latest loop ended with."""
    threads = AdaptiveThreads(most, apply)
    try:
        if _latest:
            threads.start(_latest[0])
        yield threads
    finally:
        if most > 1:
            _latest[:] = [threads.count]
        threads.close()


class AdaptiveThreads:
    """A number of threads that is adapted while a loop computes, at first `most`; `apply` is called with each new one.

    `apply` returns the number of threads in all, where several groups of so many compute different things and meet more
    rarely; None: there is one group. The number stays what it is where ``OMP_NUM_THREADS`` is set. The clocks are in
    seconds, `cpu_clock` of all threads on a core.
    """

    def __init__(
        self,
        most: int,
        apply: Callable[[int], int | None] = lambda count: None,
        clock: Callable[[], float] = time.perf_counter,
        cpu_clock: Callable[[], float] = time.process_time,
    ) -> None:
        self.count = self._all = self._most = most
        self._apply, self._clock, self._cpu_clock = apply, clock, cpu_clock
        self._adapts = most > 1 and "OMP_NUM_THREADS" not in os.environ
        self._before: tuple[int, float] | None = None
        self._patience, self._wait = _PATIENCE, 1
        self._reset()

    def start(self, count: int) -> None:
        """Begin with so many threads, or fewer."""
        if self._adapts and count < self._most:
            self._set(count)

    def begin(self) -> None:
        """Begin a unit of work."""
        if self._adapts:
            self._since, self._cpu_since = self._clock(), self._cpu_clock()

    def end(self, work: float) -> None:
        """End it: a step of so many tokens, say. Now and then the number of threads is chosen."""
        if not self._adapts:
            return
        self._seconds += self._clock() - self._since
        self._cpu_seconds += self._cpu_clock() - self._cpu_since
        self._work += work
        self._units += 1
        if self._seconds >= _WINDOW and self._units >= _UNITS:
            self._choose(self._work / self._seconds, 1 - self._cpu_seconds / (self._seconds * self._all))
            self._reset()

    def close(self) -> None:
        """Apply the first number again."""
        if self.count != self._most:
            self._set(self._most)

    def _reset(self) -> None:
        self._seconds = self._cpu_seconds = self._work = 0.0
        self._units = 0

    def _choose(self, speed: float, waiting: float) -> None:
        """Go on as before, try another number of threads, or end such a trial."""
        self._wait -= 1
        if self._before is not None:
            (threads, before), self._before = self._before, None
            if speed > (before / _GAIN if self.count < threads else _GAIN * before):
                self._patience = _PATIENCE
            else:
                self._patience = min(2 * self._patience, _MOST_PATIENCE)
                self._set(threads)
            self._wait = self._patience
            return
        # Where threads wait for a core, more of them would wait for longer.
        candidate = max(1, self.count // 2) if waiting >= _BUSY else min(2 * self.count, self._most)
        if self._wait <= 0 and candidate != self.count:
            self._before = self.count, speed
            self._set(candidate)

    def _set(self, threads: int) -> None:
        self.count = threads
        self._all = self._apply(threads) or threads
