"""Neither the number of threads nor other programs change a bit of what is learned in so many steps."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import anyformer as af
from anyformer.cli import train
from anyformer.data.batch import Batch
from anyformer.kernels.cpu.library import Kernel
from anyformer.kernels.cpu.matmul import FP32, bf16_matmul, fp32_matmul
from anyformer.training import trainer
from anyformer.training.strategies.base import Strategy
from tests.training.conftest import FLOAT, TINY, Trains, prose, single
from tests.training.kills import assert_survives, driver, places_with_cache

FAMILIES = ["gpt2-nano", "llama-nano", "bert-mini", "t5-nano", "transformer-tiny"]
DTYPES = {
    "float32": FLOAT,
    "bfloat16": replace(FLOAT, dtype=torch.bfloat16),
    "int8": replace(FLOAT, dtype=torch.bfloat16, int8=True),
}
STEPS = ["--steps", "12", "--save-every", "4", "--evaluate-every", "4", "--log-every", "1"]
RUN = ["gpt2-nano", "--tokenizer", "char", *TINY, "--context", "64", "--batch-size", "64", "--dtype", "float32", *STEPS]


@pytest.fixture(autouse=True)
def _threads_as_before() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def learned(name: str, dtype: str, threads: int) -> dict[str, Tensor]:
    """The weights after two steps with so many threads, of sizes that threads divide unevenly."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    preset = af.preset(name)
    layers = {field: min(2, getattr(preset, field)) for field in ("encoder_layers", "decoder_layers")}
    strategy = single(af.build(preset.replace(vocab_size=1500, **layers)), DTYPES[dtype], optimizer="muon")
    rng, shape = np.random.default_rng(0), (19, min(53, preset.max_length or 53))
    both = preset.encoder_layers and preset.decoder_layers
    for step in range(2):
        tokens, targets, source = (rng.integers(5, 1500, shape) for _ in range(3))
        strategy.step(step, Batch(tokens, targets, source=source if both else None), 1e-3)
    weights = {name: weight.clone() for name, weight in strategy.model.state_dict().items()}
    strategy.close()
    return weights


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", [FAMILIES[0], *(pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES[1:])])
def test_threads_change_no_weight(name: str, dtype: str) -> None:
    one = learned(name, dtype, 1)
    for threads in (2, 3, 8):
        for weight, found in learned(name, dtype, threads).items():
            assert torch.equal(found, one[weight]), (weight, threads)


@pytest.mark.parametrize("multiply", [fp32_matmul, bf16_matmul])
def test_threads_change_no_product(multiply: Any) -> None:
    kernel: Kernel = multiply.args[0]
    if not kernel.supported():
        pytest.skip(f"needs compiled code of {kernel.name}")
    left, right = torch.randn(61, 3000), torch.randn(45, 3000)
    dtypes = [torch.float32] if kernel is FP32 else [torch.float32, torch.bfloat16]
    for dtype in dtypes:
        found: list[Tensor] = []
        for threads in (1, 2, 3, 8):
            torch.set_num_threads(threads)
            found.append(multiply(left, right, out=torch.empty(61, 45, dtype=dtype)))
            exact = left.double() @ right.double().t()
            assert float((found[-1].double() - exact).norm() / exact.norm()) < 2**-7
        assert all(torch.equal(each, found[0]) for each in found)


@pytest.fixture
def used(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of threads of each step that is taken."""
    step, counts = Strategy.step, list[int]()

    def counted(self: Strategy, *arguments: Any) -> Tensor:
        counts.append(torch.get_num_threads())
        return step(self, *arguments)

    monkeypatch.setattr(Strategy, "step", counted)
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    return counts


def test_a_run_goes_on_with_its_threads(
    text: Path, trains: Trains, used: list[int], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.set_num_threads(2)
    run = trains(*RUN, "--data", str(text), "--keep-optimizer")
    torch.set_num_threads(1)
    assert train.run(["--resume", str(run), "--steps", "14"]) == 0
    assert used == [2] * 14
    assert torch.get_num_threads() == 1
    assert "threads " not in capsys.readouterr().out
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert train.run(["--resume", str(run), "--steps", "16"]) == 0
    assert used[14:] == [1, 1]
    assert "threads    1; the steps before were computed with 2, so" in capsys.readouterr().out
    assert train.run(["--resume", str(run), "--steps", "17"]) == 0
    assert "threads " not in capsys.readouterr().out


@pytest.mark.parametrize(("length", "adapts"), [(["--steps", "3"], False), (["--minutes", "0.005"], True)])
def test_only_what_ends_by_the_clock_adapts_to_load(
    length: list[str], adapts: bool, text: Path, trains: Trains, used: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    most, adaptive = list[int](), trainer.adaptive_threads

    def watched(count: int, apply: Any) -> Any:
        most.append(count)
        return adaptive(count, apply)

    monkeypatch.setattr(trainer, "adaptive_threads", watched)
    torch.set_num_threads(2)
    trains(*RUN[: -len(STEPS)], *length, "--data", str(text))
    assert most == [2 if adapts else 1]


@contextmanager
def busy(programs: int) -> Generator[None]:
    """Programs that keep a core each, meanwhile."""
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(programs)]
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", FAMILIES)
def test_other_programs_change_no_weight(name: str, dtype: str, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text(prose(30_000), encoding="utf-8")
    data = ["--source", str(text), "--target", str(text)] if name == "transformer-tiny" else ["--data", str(text)]
    command = [
        sys.executable,
        "-m",
        "anyformer",
        "train",
        name,
        "--dtype",
        dtype,
        "--steps",
        "40",
        "--batch-size",
        "16",
    ]
    hashes: list[str] = []
    for number, (programs, threads) in enumerate([(0, ""), (2, ""), (0, "1")]):
        environment = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"}
        environment |= {"OMP_NUM_THREADS": threads} if threads else {}
        folder = ["--runs", str(tmp_path), "--name", str(number)]
        with busy(programs):
            subprocess.run([*command, *data, *folder], check=True, env=environment, capture_output=True)
        weights = (tmp_path / str(number) / "model" / "model.safetensors").read_bytes()
        hashes.append(hashlib.sha256(weights).hexdigest())
    assert len(set(hashes)) == 1


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_killed_beside_other_programs(text: Path, tmp_path: Path) -> None:
    with driver("train", threads=2) as start, busy(2):
        places = places_with_cache
        assert_survives(
            [*RUN, "--keep-optimizer", "--data", str(text)],
            tmp_path,
            start,
            20,
            seed=2,
            check=lambda _: None,
            where=places,
        )
