"""Engines with two processes equal one process, and read each other's checkpoints."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from anyformer.cli import train as train_command
from anyformer.errors import UserError
from anyformer.model import build
from anyformer.training.optimizer import make_optimizer
from anyformer.training.precision import Precision
from anyformer.training.recipe import make_strategy
from anyformer.training.strategies.base import Plan
from anyformer.training.strategies.group import Group
from anyformer.training.strategies.launch import check_engine
from tests.forked import Forks, forks
from tests.training import strategies_worker
from tests.training.conftest import TINY, Trains, losses
from tests.training.strategies_worker import STEPS, config, train

Result = tuple[str, dict[str, list[float]], dict[str, Tensor]]

NATIVE = {"ddp": {"engine": "ddp"}, "fsdp": {"engine": "fsdp"}}
ZERO = {f"zero{stage}": {"engine": "deepspeed", "zero": stage} for stage in (1, 2, 3)}
ENGINES = NATIVE | ZERO
SAID = {
    "ddp": "ddp, 2 processes (gloo)",
    "fsdp": "fsdp, 2 processes (gloo)",
    **{f"zero{stage}": f"deepspeed ZeRO-{stage}, 2 processes (gloo)" for stage in (1, 2, 3)},
}
ZERO_FROM = [("zero1", "zero2"), ("zero2", "zero3"), ("zero3", "zero1"), ("zero2", "one"), ("zero3", "fsdp")]
NOISE = "attention.key.bias"
_ZERO_CASES = [
    (stage, case)
    for stage in ZERO
    for case in strategies_worker.CASES
    if case != "muon" and (stage != "zero1" or case not in strategies_worker.FINETUNED)
]
_SLOW = [("zero3", case) for case in ("classify", "chat", "embed", "pair-class")]
"""ZeRO-3 takes ten times as long as the others to begin with a model."""

needs_deepspeed = pytest.mark.skipif(find_spec("deepspeed") is None, reason="DeepSpeed is not installed")
ALL = [*NATIVE, *(pytest.param(name, marks=needs_deepspeed) for name in ZERO)]


class Two:
    """Two gloo processes that do jobs one after the other; what they did is kept."""

    def __init__(self, folder: Path, programs: Forks) -> None:
        self.folder = folder
        self.programs = programs

    def run(self, name: str, jobs: dict[str, dict[str, Any]]) -> None:
        """Do jobs, whose results go by their names."""
        todo = self.folder / f"{name}.json"
        todo.write_text(json.dumps([{**job, "out": str(self.folder / of)} for of, job in jobs.items()]))
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        here = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2"}
        code = "from tests.training.strategies_worker import main; main()"
        processes = [
            self.programs.start(code, str(todo), environment={**here, "RANK": rank, "LOCAL_RANK": rank})
            for rank in ("0", "1")
        ]
        with ThreadPoolExecutor(2) as readers:
            said = [err for _, err in readers.map(lambda process: process.communicate(timeout=500), processes)]
        assert [process.returncode for process in processes] == [0, 0], "\n".join(said)

    def result(self, name: str) -> Result:
        made = json.loads((self.folder / f"{name}.json").read_text(encoding="utf-8"))
        return made["said"], made["figures"], load_file(self.folder / f"{name}.safetensors")


@pytest.fixture(scope="session", autouse=True)
def _toys(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("toys")
    strategies_worker.write_toys(folder)
    os.environ[strategies_worker.TOYS] = str(folder)


@pytest.fixture(scope="session")
def one(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Result]:
    return cache(lambda case: train(Group(), case))


@pytest.fixture(scope="session")
def halfway(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that one process made."""
    folder = tmp_path_factory.mktemp("one") / "checkpoint"
    train(Group(), "tied", save=str(folder), end=STEPS // 2)
    return folder


@pytest.fixture(scope="module")
def ready() -> Iterator[Forks]:
    """What starts processes that have imported all that an engine needs."""
    modules = ["tests.training.strategies_worker", "anyformer.training.strategies.fsdp", "torch._dynamo"]
    if find_spec("deepspeed"):
        # Muon is compiled where it is imported, for which all of torch's compiler is.
        modules += ["anyformer.training.strategies.deepspeed", "deepspeed.runtime.zero.muon.original_muon"]
    with forks(*modules) as programs:
        yield programs


@pytest.fixture(scope="module")
def native(tmp_path_factory: pytest.TempPathFactory, halfway: Path, ready: Forks) -> Two:
    two = Two(tmp_path_factory.mktemp("native"), ready)
    saved = {name: str(two.folder / f"{name}-checkpoint") for name in NATIVE}
    jobs = {f"{name}-{case}": {**of, "case": case} for name, of in NATIVE.items() for case in strategies_worker.CASES}
    for name, of in NATIVE.items():
        other = next(other for other in NATIVE if other != name)
        jobs[f"{name}-save"] = {**of, "case": "tied", "save": saved[name], "end": STEPS // 2}
        jobs[f"{name}-adapter"] = {**of, "case": "chat", "save": f"{saved[name]}-adapter", "end": STEPS // 2}
        jobs[f"{name}-bf16"] = {**of, "case": "tied", "dtype": "bfloat16"}
        jobs[f"{name}-from-one"] = {**of, "case": "tied", "load": str(halfway)}
        jobs[f"{name}-from-{other}"] = {**of, "case": "tied", "load": saved[other]}
        jobs[f"{name}-from-{name}"] = {**of, "case": "tied", "load": saved[name]}
    two.run("native", dict(sorted(jobs.items(), key=lambda job: "load" in job[1])))
    return two


@pytest.fixture(scope="module")
def zero(tmp_path_factory: pytest.TempPathFactory, halfway: Path, native: Two, ready: Forks) -> Two:
    two = Two(tmp_path_factory.mktemp("zero"), ready)
    saved = {name: str(two.folder / f"{name}-checkpoint") for name in ZERO}
    jobs = {f"{name}-{case}": {**ZERO[name], "case": case} for name, case in _ZERO_CASES if (name, case) not in _SLOW}
    for name, of in ZERO.items():
        jobs[f"{name}-save"] = {**of, "case": "tied", "save": saved[name], "end": STEPS // 2}
        jobs[f"{name}-adapter"] = {**of, "case": "chat", "save": f"{saved[name]}-adapter", "end": STEPS // 2}
    saved |= {"one": str(halfway), "fsdp": str(native.folder / "fsdp-checkpoint")}
    for name, origin in ZERO_FROM:
        jobs[f"{name}-from-{origin}"] = {**ZERO[name], "case": "tied", "load": saved[origin]}
    jobs["zero3-bf16"] = {**ZERO["zero3"], "case": "tied", "dtype": "bfloat16"}
    two.run("zero", dict(sorted(jobs.items(), key=lambda job: "load" in job[1])))
    return two


@pytest.fixture(scope="module")
def zero_slow(tmp_path_factory: pytest.TempPathFactory, ready: Forks) -> Two:
    two = Two(tmp_path_factory.mktemp("zero-slow"), ready)
    two.run("zero", {f"{name}-{case}": {**ZERO[name], "case": case} for name, case in _SLOW})
    return two


def results(request: pytest.FixtureRequest, engine: str, case: str = "") -> Two:
    zero = "zero_slow" if (engine, case) in _SLOW else "zero"
    return request.getfixturevalue("native" if engine in NATIVE else zero)


def assert_equal(found: Result, wanted: Result, tolerance: float = 1e-5) -> None:
    figures, weights = found[1], found[2]
    for name, values in figures.items():
        assert values == pytest.approx(wanted[1][name], rel=tolerance), name
    assert weights.keys() == wanted[2].keys()
    for name, weight in weights.items():
        if NOISE not in name:
            assert (weight - wanted[2][name]).norm() <= tolerance * wanted[2][name].norm(), name


@pytest.mark.parametrize(
    ("engine", "case"),
    [
        *((engine, case) for engine in NATIVE for case in strategies_worker.CASES),
        *(
            pytest.param(*each, marks=[needs_deepspeed, *([pytest.mark.slow] if each in _SLOW else [])])
            for each in _ZERO_CASES
        ),
    ],
)
def test_two_processes_equal_one(
    request: pytest.FixtureRequest, one: Callable[[str], Result], engine: str, case: str
) -> None:
    found = results(request, engine, case).result(f"{engine}-{case}")
    assert found[0] == SAID[engine]
    assert len(found[1]) == STEPS + 2
    assert_equal(found, one(case))


@pytest.mark.parametrize("engine", ALL)
def test_a_checkpoint_of_two_resumes_on_one(
    request: pytest.FixtureRequest, one: Callable[[str], Result], engine: str
) -> None:
    saved = results(request, engine).folder / f"{engine}-checkpoint"
    assert {path.suffix for path in saved.iterdir()} == {".safetensors"}
    assert_equal(train(Group(), "tied", load=str(saved)), one("tied"))


@pytest.mark.parametrize("engine", ALL)
def test_a_checkpoint_of_an_adapter_is_without_its_base(
    request: pytest.FixtureRequest, one: Callable[[str], Result], engine: str
) -> None:
    saved = results(request, engine).folder / f"{engine}-checkpoint-adapter"
    names = {name for path in saved.iterdir() for name in load_file(path)}
    assert names
    assert {name for name in names if ".adapters." not in name} <= {"average.updates", "average.kept"}, names
    assert_equal(train(Group(), "chat", load=str(saved)), one("chat"))


@pytest.mark.parametrize(
    ("engine", "origin"),
    [
        *((engine, origin) for engine in NATIVE for origin in ("one", *NATIVE)),
        *(pytest.param(*pair, marks=needs_deepspeed) for pair in ZERO_FROM),
    ],
)
def test_a_checkpoint_resumes_on_two(
    request: pytest.FixtureRequest, one: Callable[[str], Result], engine: str, origin: str
) -> None:
    assert_equal(results(request, engine).result(f"{engine}-from-{origin}"), one("tied"))


@pytest.mark.parametrize("engine", [*NATIVE, pytest.param("zero3", marks=needs_deepspeed)])
def test_bfloat16_stays_within_its_rounding(
    request: pytest.FixtureRequest, one: Callable[[str], Result], engine: str
) -> None:
    """Only the products are narrow, so the weights and the losses hardly move."""
    losses = {step: values[:1] for step, values in results(request, engine).result(f"{engine}-bf16")[1].items()}
    for step, (loss,) in losses.items():
        assert loss == pytest.approx(one("tied")[1][step][0], rel=0.01), step
        assert loss != one("tied")[1][step][0]


def test_the_command_starts_two_and_resumes_on_one(tmp_path: Path, text: Path, trains: Trains) -> None:
    flags = ["gpt2-nano", "--data", str(text), *TINY, "--tokenizer=char", "--context=16", "--batch-size=5", "--steps=6"]
    flags += ["--device=cpu", "--dtype=float32", "--log-every=1", "--save-every=3", "--grad-accumulation=2"]
    flags += ["--cache", str(tmp_path / "cache"), "--keep=5", "--keep-optimizer"]
    alone = trains(*flags, name="alone")
    two = [*flags, "--engine=fsdp", "--processes=2", "--name=two", "--runs", str(tmp_path / "runs")]
    command = [sys.executable, "-m", "anyformer", "train", *two]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("fsdp, 2 processes (gloo)") == 1
    together = tmp_path / "runs" / "two"
    assert losses(together) == pytest.approx(losses(alone), rel=1e-5)
    shutil.rmtree(together / "checkpoints" / "step-00000006")
    assert train_command.run(["--resume", str(together), "--engine=None", "--processes=1"]) == 0
    assert losses(together) == pytest.approx(losses(alone), rel=1e-5)


@needs_deepspeed
def test_zero_declines_muon() -> None:
    from anyformer.training.strategies.deepspeed import DeepSpeed

    plan = Plan(
        Precision(torch.device("cpu"), torch.float32, "for a test"), lambda model: make_optimizer("muon", model, 1.0)
    )
    with pytest.raises(UserError, match="adamw"):
        DeepSpeed(build(config("muon")), plan, Group(), 2)


@pytest.mark.parametrize(
    ("name", "processes", "says"),
    [
        ("fsdp", 1, "--engine fsdp is for several processes.*--processes 2"),
        (None, 2, "2 processes .* add --engine"),
        ("fdsp", 2, "no engine 'fdsp'.*fsdp"),
    ],
)
def test_an_engine_that_does_not_fit_is_declined(name: str | None, processes: int, says: str) -> None:
    with pytest.raises(UserError, match=says):
        check_engine(name, processes)


def test_no_engine_falls_back_to_one_process() -> None:
    plan = Plan(
        Precision(torch.device("cpu"), torch.float32, "for a test"), lambda model: make_optimizer("adamw", model, 1.0)
    )
    with pytest.raises(UserError, match="several processes"):
        make_strategy("ddp", build(config("tied")), plan, Group())


def test_deepspeed_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("anyformer.training.strategies.launch.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'anyformer\[deepspeed\]'"):
        check_engine("deepspeed", 2)
