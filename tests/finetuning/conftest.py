"""Tiny models in a folder, and one way to run the command."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch

import anyformer as af
from anyformer.cli.main import main
from tests.finetuning import toys
from tests.finetuning.toys import Row

Tunes = Callable[..., Path]


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the directory of each model."""
    folder = tmp_path_factory.mktemp("models")
    for name, make in toys.MODELS.items():
        model, tokenizer = make()
        af.save(model, folder / name, tokenizer=tokenizer)
    return folder


def arguments(model: Path, data: Path, *flags: str) -> list[str]:
    """The command line of a short run on the CPU."""
    short = ["--batch-size=8", "--learning-rate=1e-2", "--device=cpu", "--dtype=float32", "--log-every=1"]
    return ["finetune", str(model), f"--data={data}", *short, f"--runs={data.parent / 'runs'}", *flags]


@pytest.fixture
def tunes(models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Tunes:
    """Fine-tunes the model of a task on toy rows, or on those given, and returns the run directory."""

    def run(task: str, *flags: str, model: str = "", rows: Sequence[Row] | None = None, name: str = "run") -> Path:
        data = toys.write(tmp_path / f"{task}.jsonl", toys.rows(task) if rows is None else rows)
        argv = arguments(models / (model or toys.TASKS[task]), data, f"--name={name}", *flags)
        assert main(argv) == 0, capsys.readouterr().err
        return tmp_path / "runs" / name

    return run
