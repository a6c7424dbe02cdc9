"""Starting programs."""

from __future__ import annotations

import operator
import os
import re
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from anyformer import processes
from anyformer.cli.main import main
from anyformer.compare.compare import compare
from anyformer.compare.result import Comparison
from anyformer.processes import InlineExecutor, ProcessExecutor
from tests.compare.texts import text
from tests.dask_programs import free_port, needs_dask, scheduler, worker


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


SMALL = (
    "--context=16",
    "--batch-size=2",
    "--tokenizer=bpe:300",
    "--tokens=400",
    "--seeds=2",
    "--no-tasks",
    "--dtype=float32",
)


@needs_dask
@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_workers_may_be_killed_and_join_late(tmp_path: Path) -> None:
    data, dask = tmp_path / "text.txt", tmp_path / "dask"
    data.write_text(text())
    dask.mkdir()
    alone = compare(
        ["gpt2", "llama"],
        data=str(data),
        out=tmp_path / "alone",
        context=16,
        batch_size=2,
        tokenizer="bpe:300",
        tokens=400,
        seeds=2,
        tasks=False,
        dtype="float32",
    )
    out = tmp_path / "out"
    with scheduler(dask) as address, ExitStack() as stack:
        first, _ = (stack.enter_context(worker(address, dask)) for _ in range(2))
        command = [sys.executable, "-m", "anyformer", "compare", "gpt2", "llama", "--data", str(data), *SMALL]
        with subprocess.Popen(
            [*command, "--out", str(out), "--scheduler", address],
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        ) as process:
            while process.poll() is None and not [*out.glob("jobs/*/metrics.jsonl")]:
                time.sleep(0.05)
            first.kill()
            stack.enter_context(worker(address, dask))
            said = process.communicate(timeout=3000)[0].decode()
    assert process.returncode == 0, said
    found = Comparison.read(out / "compare.json")
    scores = [
        [(group.name, score.model, score.value) for group in each.groups for score in group.scores]
        for each in (found, alone)
    ]
    assert scores[0] == [(group, model, pytest.approx(value, rel=1e-4)) for group, model, value in scores[1]]
    logs = "".join(path.read_text() for path in dask.glob("*.log"))
    assert len(re.findall("Registered to", logs)) >= 3, logs


@needs_dask
@pytest.mark.slow
def test_nobody_answers(capsys: pytest.CaptureFixture[str]) -> None:
    address = f"tcp://127.0.0.1:{free_port()}"
    assert main(["compare", "gpt2", "llama", "--scheduler", address]) == 2
    assert f"No scheduler answers at '{address}'" in capsys.readouterr().err


@needs_dask
@pytest.mark.slow
def test_a_worker_that_does_not_see_the_folder_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from anyformer import processes

    data = tmp_path / "text.txt"
    data.write_text(text())
    init = processes._Workers.__init__

    def elsewhere(self: processes._Workers, executor: object) -> None:
        init(self, executor)  # pyright: ignore[reportArgumentType]
        self._folder = str(tmp_path / "nowhere")

    monkeypatch.setattr(processes._Workers, "__init__", elsewhere)
    with scheduler(tmp_path) as address, worker(address, tmp_path):
        argv = ["compare", "gpt2", "llama", "--data", str(data), *SMALL, "--out", str(tmp_path / "out")]
        assert main([*argv, "--scheduler", address]) == 2
    assert "does not see the folder" in capsys.readouterr().err


def test_dask_that_is_not_installed_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    assert main(["compare", "gpt2", "llama", "--scheduler", "tcp://node0:8786"]) == 2
    assert "pip install 'anyformer[cluster]'" in capsys.readouterr().err
