"""The small parts: precision, allocator, interrupt, run directory, sample."""

from __future__ import annotations

import os
import platform
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

import anyformer as af
from anyformer.errors import UserError
from anyformer.runs.directory import RunDirectory, model_directory
from anyformer.training.interrupt import interruptible
from anyformer.training.memory import keep_freed_memory
from anyformer.training.precision import choose_precision


def test_precision_follows_orders():
    assert choose_precision("cpu", "float32").dtype == torch.float32
    asked = choose_precision("cpu", "bfloat16")
    assert str(asked) == "bfloat16 on cpu (as asked)"
    with asked.autocast():
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16


def test_precision_says_why():
    chosen = choose_precision("cpu", None)
    assert chosen.name in ("float32", "bfloat16")
    assert "times as fast on this CPU" in str(chosen)


@pytest.mark.parametrize("device", ["toaster", "cuda:99", "xpu"])
def test_an_absent_device_is_refused(device: str):
    with pytest.raises(UserError, match=f"--device {device} can't be used"):
        choose_precision(device, "float32")


def test_allocator_is_tuned_where_it_is_glibc():
    assert keep_freed_memory() is (platform.libc_ver()[0] == "glibc")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_first_signal_marks_and_second_ends(number: signal.Signals, capfd: pytest.CaptureFixture[str]):
    before = signal.getsignal(number)
    with interruptible() as interrupt:
        assert not interrupt.asked()
        os.kill(os.getpid(), number)
        assert interrupt.asked()
        assert interrupt.exit_status == 128 + number
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), number)
    assert signal.getsignal(number) is before
    assert "once more to quit" in capfd.readouterr().err


def test_other_threads_are_left_alone():
    asked: list[bool] = []

    def work() -> None:
        with interruptible() as interrupt:
            asked.append(interrupt.asked())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert asked == [False]


def test_run_directories_never_collide(tmp_path: Path):
    first = RunDirectory.create(tmp_path / "runs", None, "gpt2")
    second = RunDirectory.create(tmp_path / "runs", None, "gpt2")
    assert (first.path.name, second.path.name) == ("gpt2-1", "gpt2-2")
    with pytest.raises(UserError, match=r"gpt2-1 exists already: choose another --name"):
        RunDirectory.create(tmp_path / "runs", "gpt2-1", "gpt2")


def test_run_directory_where_there_is_a_file(tmp_path: Path):
    (tmp_path / "runs").write_text("")
    with pytest.raises(UserError, match="can't be made"):
        RunDirectory.create(tmp_path / "runs", None, "gpt2")


def test_model_directory_finds_the_model(tmp_path: Path):
    run = RunDirectory.create(tmp_path, "a", "gpt2")
    assert model_directory(run.path) == run.path
    model = af.build(af.preset("gpt2-nano", vocab_size=8, d_model=8, decoder_layers=1))
    af.save(model, run.model)
    assert model_directory(str(run.path)) == run.model
    assert model_directory(run.model) == run.model
    assert model_directory("some/name") == Path("some/name")


def test_a_config_costs_no_torch():
    code = (
        "import sys; from anyformer.cli import train; from anyformer.runs.directory import model_directory; "
        "train.read_arguments(['gpt2', '--steps', '3']); sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
