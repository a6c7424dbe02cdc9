"""Calls in processes: results, exceptions, and the end of a process."""

import operator
import os
import time
from pathlib import Path

import pytest

from anyformer.processes import InlineExecutor, ProcessExecutor


def test_calls_return_and_raise() -> None:
    with ProcessExecutor(2, threads=1) as executor:
        futures = [executor.submit(operator.floordiv, 7, divisor) for divisor in (2, 0)]
        number = executor.submit(os.getpid)
        threads = executor.submit(os.getenv, "OMP_NUM_THREADS")
        ended = executor.submit(os._exit, 3)
        assert futures[0].result() == 3
        with pytest.raises(ZeroDivisionError):
            futures[1].result()
        assert number.result() != os.getpid()
        assert threads.result() == "1"
        with pytest.raises(ChildProcessError, match="status 3"):
            ended.result()


def test_an_exception_ends_the_processes() -> None:
    begun = time.monotonic()

    def interrupted() -> None:
        with ProcessExecutor(1, threads=1) as executor:
            executor.submit(time.sleep, 60)
            time.sleep(0.2)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert time.monotonic() - begun < 30


def test_nothing_is_imported_from_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "operator.py").write_text("raise SystemExit(9)")
    (tmp_path / "anyformer.py").write_text("raise SystemExit(9)")
    monkeypatch.chdir(tmp_path)
    with ProcessExecutor(1, threads=1) as executor:
        assert executor.submit(operator.add, 1, 2).result() == 3


def test_calls_in_place() -> None:
    with InlineExecutor() as executor:
        future = executor.submit(os.getpid)
        assert future.done()
        assert future.result() == os.getpid()
        with pytest.raises(ZeroDivisionError):
            executor.submit(operator.floordiv, 1, 0).result()
