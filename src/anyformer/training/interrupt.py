"""Ctrl-C, and a polite kill, between two steps."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Generator
from contextlib import contextmanager
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupt:
    """Whether the user wants the run to end.

    Attributes:
        signal: the signal that asked for it, None if none did.
    """

    signal: int | None = None

    def asked(self) -> bool:
        """Whether a signal asked for the end."""
        return self.signal is not None

    @property
    def exit_status(self) -> int:
        """128 and the signal's number, as shells have it: 130 for Ctrl-C."""
        return 128 + (self.signal or signal.SIGINT)


@contextmanager
def interruptible() -> Generator[Interrupt, None, None]:
    """Let the first Ctrl-C or SIGTERM only set a mark, to be looked at between two steps; the second ends at once.

    In a thread other than the main one, where signals can't be caught, the mark is never set.
    """
    interrupt = Interrupt()
    if threading.current_thread() is not threading.main_thread():
        yield interrupt
        return
    before = {number: signal.getsignal(number) for number in _SIGNALS}

    def mark(number: int, frame: FrameType | None) -> None:
        del frame
        if interrupt.signal is not None:
            raise KeyboardInterrupt
        interrupt.signal = number
        # Not print: a signal may come while something else is being printed.
        os.write(2, b"\nStopping after this step; once more to quit at once.\n")

    for number in _SIGNALS:
        signal.signal(number, mark)
    try:
        yield interrupt
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
