"""Engines with two processes equal one process, and read each other's checkpoints."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
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

NATIVE = {
    "ddp": {"engine": "ddp"},
    "fsdp": {"engine": "fsdp"},
    "tensor": {"engine": "fsdp", "tensor": 2},
    "context": {"engine": "fsdp", "context": 2},
}
ZERO = {f"zero{stage}": {"engine": "deepspeed", "zero": stage} for stage in (1, 2, 3)}
ENGINES = NATIVE | ZERO
SAID = {
    "ddp": "ddp, 2 processes (gloo)",
    "fsdp": "fsdp, 2 processes (gloo)",
    "tensor": "fsdp, 2 processes (gloo), tensor parallel 2",
    "context": "fsdp, 2 processes (gloo), context parallel 2",
    **{f"zero{stage}": f"deepspeed ZeRO-{stage}, 2 processes (gloo)" for stage in (1, 2, 3)},
}
NOISE = "attention.key.bias"
CASES = {
    "ddp": ("tied", "masked", "masked-dropout", "muon", "chat", "negatives", "mixtral-2"),
    "fsdp": (
        "pairs",
        "shared",
        "classify",
        "dora",
        "stored-int4",
        "preference",
        "embed",
        "pair-class",
        "gpt_oss-0",
        "deepseek_v3-0",
    ),
    "tensor": ("dropout",),
    "context": ("pairs", "dropout"),
    "zero1": ("shared",),
    "zero2": ("qwen3_moe-0",),
    "zero3": ("olmoe-0",),
}
"""The cases that an engine trains in the gate: each kind by one engine at least."""
ORIGINS = {
    "ddp": ("fsdp", "one", "ddp"),
    "fsdp": ("ddp", "one", "fsdp", "tensor"),
    "tensor": ("fsdp", "one", "ddp", "tensor"),
    "zero1": ("zero2",),
    "zero2": ("zero3", "one", "tensor"),
    "zero3": ("fsdp", "zero1"),
}
"""Whose checkpoints an engine goes on from; in the gate from the first."""


def _is_trained(engine: str, case: str) -> bool:
    if engine == "zero1" and case in strategies_worker.FINETUNED and case != "preference":
        return False
    if case in strategies_worker.QUANTIZED and engine not in ("ddp", "fsdp"):
        return False
    if engine == "context" and case in ("classify", "preference", "embed", "negatives", "pair-class"):
        return False
    if engine == "tensor" and case == "dora":
        return False
    if engine in ("tensor", "context") and case in strategies_worker.EXPERTS:
        return False  # they balance other tokens; see test_tensor_parallel.py and test_context_parallel.py
    return engine in NATIVE or not case.startswith("muon")


needs_deepspeed = pytest.mark.skipif(find_spec("deepspeed") is None, reason="DeepSpeed is not installed")


def _each(jobs: dict[str, dict[str, bool]]) -> pytest.MarkDecorator:
    """Parametrize a test by engine and job, and leave to the slow run what is not for the gate."""
    return pytest.mark.parametrize(
        ("engine", "job"),
        [
            pytest.param(
                engine,
                job,
                marks=[*([] if in_gate else [pytest.mark.slow]), *([] if engine in NATIVE else [needs_deepspeed])],
            )
            for engine, its in jobs.items()
            for job, in_gate in its.items()
        ],
    )


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


def _jobs(request: pytest.FixtureRequest, engines: Iterable[str]) -> Iterator[tuple[str, str]]:
    """The jobs of these engines that tests to be run ask for, those first whose checkpoints others need."""
    params = [
        item.callspec.params
        for item in request.session.items
        if getattr(item, "module", None) is request.module
        and "job" in getattr(getattr(item, "callspec", None), "params", {})
    ]
    asked = [(each["engine"], each["job"]) for each in params]
    origins = [(job.removeprefix("from-"), "save") for _, job in asked if job.startswith("from-")]
    return (each for each in dict.fromkeys([*origins, *asked]) if each[0] in engines)


def _run(two: Two, jobs: Iterable[tuple[str, str]], halfway: Path, native: Two | None = None) -> Two:
    def checkpoint(engine: str) -> str:
        of = native if native is not None and engine in NATIVE else two
        return str(halfway if engine == "one" else of.folder / f"{engine}-checkpoint")

    def described(engine: str, job: str) -> dict[str, Any]:
        half = {"end": STEPS // 2}
        if job == "save":
            return {"case": "tied", "save": checkpoint(engine), **half}
        if job == "adapter":
            return {"case": "chat", "save": f"{checkpoint(engine)}-adapter", **half}
        if job == "bf16":
            return {"case": "tied", "dtype": "bfloat16"}
        if job.startswith("from-"):
            return {"case": "tied", "load": checkpoint(job.removeprefix("from-"))}
        return {"case": job}

    if todo := {f"{engine}-{job}": ENGINES[engine] | described(engine, job) for engine, job in jobs}:
        two.run("jobs", todo)
    return two


@pytest.fixture(scope="module")
def native(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, halfway: Path, ready: Forks
) -> Two:
    return _run(Two(tmp_path_factory.mktemp("native"), ready), _jobs(request, NATIVE), halfway)


@pytest.fixture(scope="module")
def zero(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, halfway: Path, native: Two, ready: Forks
) -> Two:
    return _run(Two(tmp_path_factory.mktemp("zero"), ready), _jobs(request, ZERO), halfway, native)


@pytest.fixture
def two(request: pytest.FixtureRequest, engine: str) -> Two:
    """The two processes of an engine, after all jobs that tests ask for."""
    return request.getfixturevalue("native" if engine in NATIVE else "zero")


def assert_equal(found: Result, wanted: Result, tolerance: float = 1e-5) -> None:
    figures, weights = found[1], found[2]
    for name, values in figures.items():
        assert values == pytest.approx(wanted[1][name], rel=tolerance), name
    assert weights.keys() == wanted[2].keys()
    for name, weight in weights.items():
        if NOISE not in name:
            assert (weight - wanted[2][name]).norm() <= tolerance * wanted[2][name].norm(), name


@_each(
    {
        engine: {case: case in kept for case in strategies_worker.CASES if _is_trained(engine, case)}
        for engine, kept in CASES.items()
    }
)
def test_two_processes_equal_one(two: Two, one: Callable[[str], Result], engine: str, job: str) -> None:
    found = two.result(f"{engine}-{job}")
    assert found[0] == SAID[engine]
    assert len(found[1]) == STEPS + 2
    assert_equal(found, one(job))


@_each({engine: {"save": engine != "context"} for engine in ENGINES})
def test_a_checkpoint_of_two_resumes_on_one(two: Two, one: Callable[[str], Result], engine: str, job: str) -> None:
    saved = two.folder / f"{engine}-checkpoint"
    assert {path.suffix for path in saved.iterdir()} == {".safetensors"}
    assert_equal(train(Group(), "tied", load=str(saved)), one("tied"))


@_each({engine: {"adapter": engine in ("fsdp", "zero2")} for engine in ENGINES})
def test_a_checkpoint_of_an_adapter_is_without_its_base(
    two: Two, one: Callable[[str], Result], engine: str, job: str
) -> None:
    saved = two.folder / f"{engine}-checkpoint-adapter"
    names = {name for path in saved.iterdir() for name in load_file(path)}
    assert names
    assert {name for name in names if ".adapters." not in name} <= {"average.updates", "average.kept"}, names
    assert_equal(train(Group(), "chat", load=str(saved)), one("chat"))


@_each({engine: {f"from-{origin}": origin == origins[0] for origin in origins} for engine, origins in ORIGINS.items()})
def test_a_checkpoint_resumes_on_two(two: Two, one: Callable[[str], Result], engine: str, job: str) -> None:
    assert_equal(two.result(f"{engine}-{job}"), one("tied"))


@_each({engine: {"bf16": engine == "fsdp"} for engine in (*NATIVE, "zero3")})
def test_bfloat16_stays_within_its_rounding(two: Two, one: Callable[[str], Result], engine: str, job: str) -> None:
    """Only the products are narrow, so the weights and the losses hardly move."""
    losses = {step: values[:1] for step, values in two.result(f"{engine}-{job}")[1].items()}
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
        ("xla", 2, "--engine xla drives all devices by one process"),
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
