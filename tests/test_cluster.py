"""A comparison whose jobs are done by workers that come and go is the one of a single process, but for rounding."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from anyformer.cli.main import main
from anyformer.compare.compare import compare
from anyformer.compare.result import Comparison
from tests.compare.texts import text
from tests.dask_programs import free_port, needs_dask, scheduler, worker

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
    from anyformer import cluster

    data = tmp_path / "text.txt"
    data.write_text(text())
    init = cluster._Workers.__init__

    def elsewhere(self: cluster._Workers, executor: object) -> None:
        init(self, executor)  # pyright: ignore[reportArgumentType]
        self._folder = str(tmp_path / "nowhere")

    monkeypatch.setattr(cluster._Workers, "__init__", elsewhere)
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
