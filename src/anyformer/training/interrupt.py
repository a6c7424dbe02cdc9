"""Ctrl-C, a polite kill, and the end of the terminal, between two steps."""

import os
import signal
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from types import FrameType

_NUMBERS = [signal.SIGINT, signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else [])]


class Interrupt:
    """The signal that asks for the end of the run; None: none does."""

    signal: int | None = None

    @property
    def exit_status(self) -> int:
        """128 and the signal's number, as shells have it: 130 for Ctrl-C."""
        return 128 + (self.signal or signal.SIGINT)


@contextmanager
def handled(handler: Callable[[int, FrameType | None], None]) -> Generator[None]:
    """SIGINT, SIGTERM and SIGHUP go to a handler; not in threads other than the main one, where they can't be caught.

    One that was ignored stays ignored, as `nohup` and the shell's background jobs want it.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    # None: the handler is not Python's, and can't be put back.
    earlier = {number: signal.getsignal(number) for number in _NUMBERS}
    heard = [number for number in _NUMBERS if earlier[number] not in (signal.SIG_IGN, None)]
    for number in heard:
        signal.signal(number, handler)
    try:
        yield
    finally:
        for number in heard:
            signal.signal(number, earlier[number])


@contextmanager
def interruptible() -> Generator[Interrupt]:
    """Let the first signal only set a mark, to be looked at between two steps; the second ends at once."""
    interrupt = Interrupt()

    def mark(number: int, frame: FrameType | None) -> None:
        if interrupt.signal is not None:
            raise KeyboardInterrupt
        interrupt.signal = number
        # Not print: a signal may come while something else is being printed. After SIGHUP the terminal is gone.
        with suppress(OSError):
            os.write(2, b"\nStopping after this step; once more to quit at once.\n")

    with handled(mark):
        yield interrupt
