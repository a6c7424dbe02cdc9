"""The first signal asks for the end, the second ends at once."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from anyformer.training.strategies.launch import interruptible


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
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


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_that_is_ignored_stays_ignored(number: signal.Signals):
    before = signal.signal(number, signal.SIG_IGN)
    try:
        with interruptible() as interrupt:
            os.kill(os.getpid(), number)
            assert interrupt.signal is None
        assert signal.getsignal(number) is signal.SIG_IGN
    finally:
        signal.signal(number, before)


def test_without_standard_error_a_signal_still_only_marks():
    kept = os.dup(2)
    os.close(2)
    try:
        with interruptible() as interrupt:
            os.kill(os.getpid(), signal.SIGTERM)
    finally:
        os.dup2(kept, 2)
        os.close(kept)
    assert interrupt.signal == signal.SIGTERM


def test_other_threads_are_left_alone():
    asked: list[bool] = []

    def work() -> None:
        with interruptible() as interrupt:
            asked.append(interrupt.signal is not None)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert asked == [False]
