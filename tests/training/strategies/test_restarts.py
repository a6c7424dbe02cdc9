"""A run whose processes are killed begins again by itself, and ends like one that was left alone."""

from __future__ import annotations

import os
import random
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file

from anyformer.cli.train import killed_run, read_arguments, restartable
from anyformer.errors import UserError
from anyformer.runs.directory import CONFIG, LOCK, RunDirectory

pytestmark = pytest.mark.skipif(os.name != "posix", reason="processes are started on POSIX systems alone")

FLAGS = ["train", "gpt2-nano", "--tokenizer", "char", "--context", "16", "--batch-size", "4"]
FLAGS += ["--steps", "40", "--save-every", "3"]


def command(text: Path, runs: Path, *flags: str) -> list[str]:
    return [sys.executable, "-P", "-m", "anyformer", *FLAGS, "--data", str(text), "--runs", str(runs), *flags]


def weights(runs: Path) -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor] = {}
    for file in runs.glob("*/model/model*.safetensors"):
        tensors |= load_file(file)
    return tensors


@pytest.mark.slow
@pytest.mark.parametrize(
    ("steps", "flags"), [(6000, []), (1500, ["--processes", "2", "--engine", "ddp"])], ids=["one", "ddp"]
)
def test_killed_twenty_times(tmp_path: Path, steps: int, flags: list[str]) -> None:
    text = tmp_path / "text.txt"
    text.write_text("to be or not to be, that is the question\n" * 200)
    flags = [*flags, "--steps", str(steps), "--save-every", "20"]  # more than twenty kills leave time for
    subprocess.run(command(text, tmp_path / "calm", *flags), check=True, capture_output=True)
    chance, kills = random.Random(0), 0
    with subprocess.Popen(command(text, tmp_path / "killed", *flags, "--restarts", "20", "--name", "run")) as process:
        watched = psutil.Process(process.pid)
        while process.poll() is None and kills < 20:
            time.sleep(chance.uniform(1, 8))
            children = [child for child in watched.children() if child.status() != psutil.STATUS_ZOMBIE]
            if children:
                chance.choice(children).kill()
                kills += 1
        assert process.wait() == 0
    assert kills == 20
    calm, killed = weights(tmp_path / "calm"), weights(tmp_path / "killed")
    assert calm.keys() == killed.keys()
    assert all(torch.equal(calm[name], killed[name]) for name in calm)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("engine", ["ddp", "fsdp"])
def test_two_agents_of_torchrun_are_one_run(tmp_path: Path, engine: str) -> None:
    """The command of docs/scaling.md for several machines, twice on this one."""
    text = tmp_path / "text.txt"
    text.write_text("to be or not to be, that is the question\n" * 200)
    here = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run(command(text, tmp_path / "one", "--dtype", "float32"), check=True, capture_output=True, env=here)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    agent = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1", "--rdzv-id", "17"]
    agent += ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{port}", "--module", "anyformer"]
    own = ["--data", str(text), "--runs", str(tmp_path / "two"), "--cache", str(tmp_path / "cache")]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": tmp_path, "env": here}
    agents = [
        subprocess.Popen([*agent, *FLAGS, *own, "--dtype", "float32", "--engine", engine], **pipes) for _ in range(2)
    ]
    outputs = [process.communicate(timeout=1500) for process in agents]
    assert [process.returncode for process in agents] == [0, 0], outputs
    assert sorted(f"engine     {engine}, 2 processes (gloo)" in said for said, _ in outputs) == [False, True]
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    assert one.keys() == two.keys()
    for name, tensor in one.items():
        if not name.endswith("attn.c_attn.bias"):  # the gradient of a key's is nothing but rounding
            assert float((two[name] - tensor).norm() / tensor.norm().clamp(min=1e-9)) < 1e-4, name


def test_a_run_with_restarts_is_found_by_its_name(tmp_path: Path) -> None:
    def config(*flags: str):  # type: ignore[no-untyped-def]
        return read_arguments(["gpt2-nano", "--runs", str(tmp_path), "--restarts", "2", *flags])

    assert restartable(config(), None) == ["--name", "gpt2-nano-1"]
    (tmp_path / "gpt2-nano-1").mkdir()
    assert restartable(config(), None) == ["--name", "gpt2-nano-2"]
    assert restartable(config("--name", "mine"), None) == []
    assert killed_run(config("--name", "gpt2-nano-1")) is None
    (tmp_path / "gpt2-nano-1" / CONFIG).touch()
    assert killed_run(config("--name", "gpt2-nano-1")) == tmp_path / "gpt2-nano-1"
    assert killed_run(config("--name", "gpt2-nano-1", "--restarts", "0")) is None


def test_a_name_is_free_where_a_run_was_killed_before_it_began(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / LOCK).touch()
    RunDirectory.create(tmp_path, "run", "gpt2").unlock()
    (tmp_path / "run" / CONFIG).touch()
    with pytest.raises(UserError, match="exists already"):
        RunDirectory.create(tmp_path, "run", "gpt2")
