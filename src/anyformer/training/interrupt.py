"""Ctrl-C, and a polite kill, between two steps."""

import os
import signal
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from types import FrameType


class Interrupt:
    """The signal that asks for the end of the run; None: none does."""

    signal: int | None = None

    @property
    def exit_status(self) -> int:
        """128 and the signal's number, as shells have it: 130 for Ctrl-C."""
        return 128 + (self.signal or signal.SIGINT)


@contextmanager
def handled(handler: Callable[[int, FrameType | None], None]) -> Generator[None]:
    """Ctrl-C and SIGTERM go to a handler; not in threads other than the main one, where they can't be caught."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)


@contextmanager
def interruptible() -> Generator[Interrupt]:
    """Let the first Ctrl-C or SIGTERM only set a mark, to be looked at between two steps; the second ends at once."""
    interrupt = Interrupt()

    def mark(number: int, frame: FrameType | None) -> None:
        if interrupt.signal is not None:
            raise KeyboardInterrupt
        interrupt.signal = number
        # Not print: a signal may come while something else is being printed.
        os.write(2, b"\nStopping after this step; once more to quit at once.\n")

    with handled(mark):
        yield interrupt
