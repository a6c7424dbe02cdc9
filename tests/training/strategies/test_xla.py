"""The engine xla, on virtual devices of XLA's CPU backend, equals one process; `.ci/xla` runs this.

It needs an environment of its own. Each number of devices has a process, which does one job after the other.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.finetuning import toys
from tests.training.conftest import TINY, prose
from tests.training.strategies.xla_worker import PRESETS, ROWS, STEPS, train
from torch import Tensor

from anyformer.cli import train as train_command

Result = tuple[dict[str, Any], dict[str, Tensor]]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("torch_xla") is None, reason="PyTorch/XLA has an environment of its own: .ci/xla"),
]

ROOT = Path(__file__).parents[3]
TOLERANCE = {"float32": 1e-4, "bfloat16": 5e-3}
NOISE = "attention.key.bias"
"""Its gradient is nothing but rounding, of which Adam makes steps of full length."""


class Devices:
    """A process with so many virtual devices."""

    def __init__(self, number: int, folder: Path) -> None:
        settings = {"PJRT_DEVICE": "CPU", "CPU_NUM_DEVICES": str(number)}
        settings["XLA_FLAGS"] = "--xla_backend_optimization_level=0"
        command = [sys.executable, "-m", "tests.training.strategies.xla_worker"]
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen(command, cwd=ROOT, env={**os.environ, **settings}, **pipes)
        self.numbers, self.folder = count(), folder

    def __call__(self, kind: str = "train", **job: Any) -> Result:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        out = self.folder / f"{next(self.numbers)}.safetensors"
        print(json.dumps({"kind": kind, "out": str(out), **job}), file=self.process.stdin, flush=True)
        line = self.process.stdout.readline()
        assert line, "the process has ended"
        result = json.loads(line)
        assert "error" not in result, result["error"]
        return result, load_file(out) if out.exists() else {}


@pytest.fixture(scope="module")
def devices(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[int], Devices]]:
    started = dict[int, Devices]()

    def of(number: int) -> Devices:
        if number not in started:
            started[number] = Devices(number, tmp_path_factory.mktemp(f"devices-{number}"))
        return started[number]

    yield of
    for each in started.values():
        each.process.communicate()


@cache
def _one(name: str, dtype: str = "float32") -> Result:
    """What one process learns."""
    return train(name, dtype=dtype)


def _assert_equal(found: Result, wanted: Result, tolerance: float = TOLERANCE["float32"]) -> None:
    for (loss, _), (expected, _) in zip(
        found[0]["figures"], wanted[0]["figures"][-len(found[0]["figures"]) :], strict=True
    ):
        assert loss == pytest.approx(expected, abs=tolerance)
    assert found[0]["evaluated"][1:] == pytest.approx(wanted[0]["evaluated"][1:], rel=tolerance)
    for name, weight in found[1].items():
        if NOISE not in name and tolerance == TOLERANCE["float32"]:
            assert (weight - wanted[1][name]).norm() <= 1e-3 * wanted[1][name].norm(), name


def _assert_few_programs(result: dict[str, Any]) -> None:
    """An evaluation, the first step, which makes the optimizer's state, all others; at times an evaluation later."""
    *training, last = result["compiled"]
    assert training == [1, 2, *[3] * (STEPS - 1)]
    assert last in {3, 4}


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize(
    ("engine", "number", "said"),
    [
        ("xla", 1, "xla, 1 device (cpu), sharded weights"),
        ("xla", 4, "xla, 4 devices (cpu), sharded weights"),
        ("xla-ddp", 4, "xla-ddp, 4 devices (cpu), a copy of the weights on each"),
    ],
)
def test_all_devices_equal_one_process(
    devices: Callable[[int], Devices], engine: str, number: int, said: str, name: str, dtype: str
) -> None:
    found = devices(number)(name=name, engine=engine, dtype=dtype)
    result = found[0]
    assert result["said"] == said
    _assert_few_programs(result)
    assert result["waits"] == [0] * (STEPS + 2)
    assert result["fallbacks"] == []
    pieces = (engine, number) == ("xla", 4)
    assert bool(result["sharded"]) == pieces
    if pieces:
        assert {name.split(".")[1] for name in result["sharded"] if name.startswith("optimizer.")} == {
            "exp_avg",
            "exp_avg_sq",
        }
    _assert_equal(found, _one(name, dtype), TOLERANCE[dtype])


@pytest.mark.parametrize(
    "settings",
    [
        {"optimizer": "muon"},
        {"grad_accumulation": 2, "gradient_checkpointing": True, "average": "ema:0.9", "label_smoothing": 0.1},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_other_ways_of_taking_a_step(devices: Callable[[int], Devices], settings: dict[str, Any]) -> None:
    found = devices(4)(name="llama", engine="xla", **settings)
    assert found[0]["waits"] == [0] * (STEPS + 2)
    assert found[0]["fallbacks"] == []
    _assert_equal(found, train("llama", **settings))


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("name", PRESETS)
def test_masks_of_dropout_are_those_of_one_process(devices: Callable[[int], Devices], name: str, dtype: str) -> None:
    job = {"name": name, "dropout": 0.2, "grad_accumulation": 2, "gradient_checkpointing": name == "bert"}
    found = devices(4)(engine="xla", dtype=dtype, **job)
    assert found[0]["waits"] == [0] * (STEPS + 2)
    assert found[0]["fallbacks"] == []
    _assert_few_programs(found[0])
    _assert_equal(found, train(dtype=dtype, **job), TOLERANCE[dtype])


def test_a_step_that_is_not_finite_is_not_taken(devices: Callable[[int], Devices]) -> None:
    job = {"name": "gpt2", "engine": "xla", "rates": {1: 1e30}, "layers": 1}
    (_, before), (result, weights) = (devices(4)(**job, steps=list(range(steps))) for steps in (2, 4))
    assert [math.isfinite(loss) for loss, _ in result["figures"]] == [True, True, False, False]
    for name, weight in weights.items():
        torch.testing.assert_close(weight, before[name], rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize(
    ("origin", "engine", "number"), [("one", "xla", 4), ("xla", "one", 1), ("xla", "xla-ddp", 1), ("xla-ddp", "xla", 4)]
)
def test_a_checkpoint_resumes_elsewhere(
    devices: Callable[[int], Devices], tmp_path: Path, origin: str, engine: str, number: int
) -> None:
    def run(engine: str, number: int, **job: Any) -> Result:
        job |= {"name": "gpt2", "average": "ema:0.9", "layers": 1}
        return train(**job) if engine == "one" else devices(number)(engine=engine, **job)

    saved = str(tmp_path / "checkpoint")
    run(origin, 4, steps=[0, 1], save=saved)
    _assert_equal(run(engine, number, steps=[2, 3], load=saved), run("one", 1, steps=[0, 1, 2, 3]))


def test_lengths_and_rows_come_in_few_programs(devices: Callable[[int], Devices]) -> None:
    sizes = [(8, 11), (7, 25), (8, 60), (5, 14), (8, 33), (6, 17), (8, 64), (7, 9)]
    found = devices(4)(name="bert", engine="xla", sizes=sizes, layers=1)
    # An evaluation, a first step of 16 tokens, and steps of 16, 32 and 64.
    assert found[0]["compiled"][-1] == 5
    _assert_equal(found, train("bert", sizes=sizes, layers=1))


def test_the_command_trains_and_one_process_goes_on(devices: Callable[[int], Devices], tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text(prose(800), encoding="utf-8")
    flags = ["train", "gpt2-nano", "--data", str(text), *TINY, "--tokenizer=char", "--context=16", "--dtype=float32"]
    flags += [f"--batch-size={ROWS}", "--steps=6", "--save-every=3", "--keep-optimizer", "--engine=xla"]
    flags += ["--cache", str(tmp_path / "cache"), "--runs", str(tmp_path), "--name=run"]
    assert devices(4)("command", argv=flags)[0]["status"] == 0
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert lines[0]["engine"] == "xla, 4 devices (cpu), sharded weights"
    assert any("sample" in line for line in lines)
    more = ["--resume", str(tmp_path / "run"), "--engine=None", "--device=cpu", "--steps=8"]
    assert train_command.run(more) == 0


def test_fine_tuning(devices: Callable[[int], Devices], tmp_path: Path) -> None:
    import anyformer as af

    encoder, tokenizer = toys.MODELS["encoder"]()
    af.save(encoder, tmp_path / "base", tokenizer=tokenizer)
    toys.write(tmp_path / "data.jsonl", toys.rows("classify"))
    flags = [
        "finetune",
        str(tmp_path / "base"),
        "--data",
        str(tmp_path / "data.jsonl"),
        "--task=classify",
        "--engine=xla",
    ]
    flags += ["--steps=8", "--batch-size=8", "--dtype=float32", "--runs", str(tmp_path), "--name=run"]
    result = devices(4)("command", argv=flags)[0]
    assert result["status"] == 0
    model, _ = af.load(tmp_path / "run")
    assert model.config.head.kind == "classification"
