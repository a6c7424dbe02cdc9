"""The first signal asks for the end, the second ends at once."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from anyformer.training.interrupt import interruptible


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_first_signal_marks_and_second_ends(number: signal.Signals, capfd: pytest.CaptureFixture[str]):
    before = signal.getsignal(number)
    with interruptible() as interrupt:
        assert interrupt.signal is None
        os.kill(os.getpid(), number)
        assert interrupt.signal == number
        assert interrupt.exit_status == 128 + number
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), number)
    assert signal.getsignal(number) is before
    assert "once more to quit" in capfd.readouterr().err


def test_other_threads_are_left_alone():
    asked: list[bool] = []

    def work() -> None:
        with interruptible() as interrupt:
            asked.append(interrupt.signal is not None)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert asked == [False]
