"""Starting programs."""

from __future__ import annotations

import operator
import os
import time
from pathlib import Path

import pytest

from anyformer import processes
from anyformer.processes import InlineExecutor, ProcessExecutor


def test_nothing_is_imported_from_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither by Python nor by what it starts in turn."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "decoy.py").write_text("print('decoy')")
    code = "import sys, subprocess; subprocess.run([sys.executable, '-m', 'decoy'], check=False); import decoy"
    said = processes.run([*processes.python("-c", f"try:\n exec({code!r})\nexcept ImportError: print('none')")])
    assert "No module named decoy" in said
    assert said.endswith("none\n")


def test_no_program_is_found_in_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "g++.exe"
    program.touch(mode=0o700)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f".{os.pathsep}")
    assert processes.find(program.name) is None
    assert processes.find(f"./{program.name}") == str(program)  # asked for
    monkeypatch.setenv("PATH", str(tmp_path))
    assert processes.find(program.name) == str(program)


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


def test_no_call_imports_from_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
