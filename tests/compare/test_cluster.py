"""A comparison whose jobs are done by workers that come and go is the one of a single process, but for rounding."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
import time
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from pathlib import Path

import pytest

from anyformer.cli.main import main
from anyformer.compare.compare import compare
from anyformer.compare.result import Comparison
from tests.compare.texts import text

needs_dask = pytest.mark.skipif(find_spec("distributed") is None, reason="dask.distributed is not installed")
SMALL = (
    "--context=16",
    "--batch-size=2",
    "--tokenizer=bpe:300",
    "--tokens=400",
    "--seeds=2",
    "--no-tasks",
    "--dtype=float32",
)


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@contextmanager
def _dask(program: str, *argv: str, cwd: Path) -> Generator[subprocess.Popen[bytes]]:
    """A program of dask's, whose log is in the folder."""
    with (cwd / f"{program}-{time.monotonic_ns()}.log").open("wb") as log:
        command = [sys.executable, "-m", f"distributed.cli.dask_{program}", *argv]
        process = subprocess.Popen(command, cwd=cwd, stdout=log, stderr=log)
        try:
            yield process
        finally:
            process.kill()
            process.wait()


def _worker(address: str, cwd: Path):
    return _dask("worker", address, "--nthreads", "1", "--no-nanny", "--no-dashboard", cwd=cwd)


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
    address, out = f"tcp://127.0.0.1:{_free_port()}", tmp_path / "out"
    with ExitStack() as stack:
        port = address.rpartition(":")[2]
        stack.enter_context(_dask("scheduler", "--host", "127.0.0.1", "--port", port, "--no-dashboard", cwd=dask))
        first, _ = (stack.enter_context(_worker(address, dask)) for _ in range(2))
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
            stack.enter_context(_worker(address, dask))
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
    address = f"tcp://127.0.0.1:{_free_port()}"
    assert main(["compare", "gpt2", "llama", "--scheduler", address]) == 2
    assert f"No scheduler answers at '{address}'" in capsys.readouterr().err


@needs_dask
@pytest.mark.slow
def test_a_worker_that_does_not_see_the_folder_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from anyformer.compare import cluster

    data, address = tmp_path / "text.txt", f"tcp://127.0.0.1:{_free_port()}"
    data.write_text(text())
    init = cluster._Workers.__init__

    def elsewhere(self: cluster._Workers, executor: object) -> None:
        init(self, executor)  # pyright: ignore[reportArgumentType]
        self._folder = str(tmp_path / "nowhere")

    monkeypatch.setattr(cluster._Workers, "__init__", elsewhere)
    with ExitStack() as stack:
        port = address.rpartition(":")[2]
        stack.enter_context(_dask("scheduler", "--host", "127.0.0.1", "--port", port, "--no-dashboard", cwd=tmp_path))
        stack.enter_context(_worker(address, tmp_path))
        argv = ["compare", "gpt2", "llama", "--data", str(data), *SMALL, "--out", str(tmp_path / "out")]
        assert main([*argv, "--scheduler", address]) == 2
    assert "does not see the folder" in capsys.readouterr().err


def test_dask_that_is_not_installed_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    assert main(["compare", "gpt2", "llama", "--scheduler", "tcp://node0:8786"]) == 2
    assert "pip install 'anyformer[cluster]'" in capsys.readouterr().err
