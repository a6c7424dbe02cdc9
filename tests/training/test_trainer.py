"""The loop: what is read when, and what becomes of a step that is no number."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor
from typing_extensions import override

from anyformer.console import Console
from anyformer.data.batch import Batch
from anyformer.families import preset
from anyformer.runs.directory import RunDirectory
from anyformer.runs.tracking import Trackers
from anyformer.training.config import TrainConfig
from anyformer.training.recipe import resolve
from anyformer.training.run import Pretraining
from anyformer.training.strategies.base import Strategy
from anyformer.training.strategies.group import Group
from anyformer.training.trainer import DivergedError, Trainer
from tests.training.conftest import losses, metrics

TIMES = ("elapsed", "tokens_per_second", "flops_per_second", "peak_flops_per_second", "started", "device")
READING = ("item", "tolist", "__bool__", "__float__", "__int__", "__index__", "cpu", "numpy", "equal")


class Counted(Tensor):
    """A tensor on an accelerator, for which the host waits wherever it reads one."""

    reads: ClassVar[list[str]] = []

    @classmethod
    @override
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.__name__ in (
            "item",
            "tolist",
            "__bool__",
            "__float__",
            "__int__",
            "__index__",
            "cpu",
            "numpy",
            "equal",
        ):
            cls.reads.append(func.__name__)
        return super().__torch_function__(func, types, args, kwargs or {})


class Late(Strategy):
    """Its figures are read late; those of a step may be no numbers."""

    broken: int | None = None

    @override
    def step(self, number: int, batch: Batch, learning_rate: float) -> Tensor:
        figures = super().step(number, batch, learning_rate)
        if number == self.broken:
            figures = figures * torch.nan
        return figures.as_subclass(Counted)


@pytest.fixture
def trainer(text: Path, tmp_path: Path):
    """Makes a trainer of a tiny model; `device` is what the loop takes its figures to be on."""

    def make(name: str, device: str = "cpu", **settings: Any) -> Trainer:
        options: dict[str, Any] = {"data": (str(text),), "context": 16, "batch_size": 4, "steps": 20, **settings}
        config = TrainConfig(
            preset="gpt2-nano",
            model=preset("gpt2-nano").replace(d_model=16, decoder_layers=1, attention={"heads": 2}),
            tokenizer="char",
            cache=tmp_path / "cache",
            device="cpu",
            dtype="float32",
            **options,
        )
        run = resolve(config, Pretraining, Group(), Console(quiet=True))
        directory = RunDirectory.create(tmp_path / "runs", name, "gpt2-nano")
        torch.manual_seed(0)
        strategy = Late(run.recipe.build(), run.plan, Group())
        elsewhere = replace(run.plan.precision, device=torch.device(device))
        run = replace(run, plan=replace(run.plan, precision=elsewhere))
        Counted.reads.clear()
        return Trainer(run, directory, strategy, Trackers((), directory.path, {}), Console(quiet=True))

    return make


@pytest.mark.parametrize(
    ("settings", "reads"),
    [
        ({"log_every": 10}, 2),
        ({"log_every": 7}, 3),
        ({"log_every": 20, "evaluate_every": 10, "save_every": 5}, 4),
        ({"log_every": 1}, 20),
    ],
)
def test_an_accelerator_is_read_only_to_log_evaluate_or_save(trainer: Any, settings: dict[str, int], reads: int):
    late = trainer("late", "meta", **settings)
    assert late.run(time.monotonic()) == 0
    assert Counted.reads == ["tolist"] * reads
    soon = trainer("soon", **settings)
    assert soon.run(time.monotonic()) == 0
    assert Counted.reads == ["tolist"] * 20
    # What is written is the same, line by line.
    one, other = (
        [{name: value for name, value in line.items() if name not in TIMES} for line in metrics(made.directory.path)]
        for made in (late, soon)
    )
    assert one == other
    assert losses(late.directory.path) == losses(soon.directory.path)


@pytest.mark.parametrize(("device", "taken"), [("cpu", 4), ("meta", 10)])
def test_training_stops_at_the_first_nan_that_is_read(trainer: Any, device: str, taken: int):
    run = trainer("run", device, log_every=10)
    run.strategy.broken = 3
    with pytest.raises(Exception, match=r"after step 3 the loss is nan.*--learning-rate.*is that of step 0") as error:
        run.run(time.monotonic())
    assert isinstance(error.value.__cause__, DivergedError)
    assert run.step == taken
    end = metrics(run.directory.path)[-1]
    assert (end["step"], end["state"]) == (0, "diverged")
    assert run.checkpoints.latest() is None


def test_an_interrupted_run_reads_before_it_saves(trainer: Any, monkeypatch: pytest.MonkeyPatch):
    run = trainer("run", "meta", log_every=100)
    monkeypatch.setattr(run, "_interrupted", lambda: run.step == 3)
    assert run.run(time.monotonic()) == 130
    assert Counted.reads == ["tolist"]
    lines = metrics(run.directory.path)
    assert [line["step"] for line in lines if "loss" in line] == [3]
    assert lines[-1]["state"] == "stopped"
    assert run.checkpoints.latest().name == "step-00000003"


@pytest.mark.parametrize(
    ("steps", "batches", "points"),
    [(12, 1, [6]), (60, 1, [15, 30, 45]), (113, 13, [57]), (113, 4, [29, 58, 87]), (100, 40, [])],
)
def test_a_short_curve_has_as_many_points_as_take_little_time(
    trainer: Any, steps: int, batches: int, points: list[int]
):
    run = trainer("run", steps=steps)
    run.batches = replace(run.batches, validation_batches=batches)
    found = list[int]()
    for run.step in range(1, steps + 1):
        if run._is_point():
            found.append(run.step)
    assert found == points
