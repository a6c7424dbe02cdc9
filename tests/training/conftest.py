"""Small texts, small models, and one way to run the command."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from anyformer.cli import train
from anyformer.model import Transformer
from anyformer.training.averaging import make_average
from anyformer.training.optimizer import make_optimizer
from anyformer.training.precision import Precision
from anyformer.training.strategies.base import Plan, Strategy
from anyformer.training.strategies.group import Group

TINY = [
    "--model.d-model=32",
    "--model.decoder-layers=2",
    "--model.attention.heads=2",
    "--model.feed-forward.width=64",
]
"""A decoder so small that it trains in no time."""

Trains = Callable[..., Path]


def prose(words: int = 4000, seed: int = 0) -> str:
    """Text with something to learn in it: sentences of a few words over and over."""
    chance = random.Random(seed)
    vocabulary = ["the cat", "a dog", "sat on", "ran to", "the mat", "my house", "and then", "it slept", "we saw"]
    text = ""
    for _ in range(words // 8):
        text += " ".join(chance.choices(vocabulary, k=4)).capitalize() + chance.choice([".\n", "!\n", "?\n"])
    return text


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(prose(), encoding="utf-8")
    return path


@pytest.fixture
def trains(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Trains:
    """Runs `anyformer train ...`, which must succeed, and returns the run directory."""

    def run(*argv: str, name: str = "run") -> Path:
        assert train.run([*argv, "--runs", str(tmp_path / "runs"), "--name", name]) == 0, capsys.readouterr().err
        return tmp_path / "runs" / name

    return run


def metrics(run: Path) -> list[dict[str, Any]]:
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def losses(run: Path) -> list[float]:
    """Every figure of a run that must be the same when it is repeated."""
    kept = ("loss", "validation_loss", "bits_per_byte", "gradient_norm", "learning_rate")
    return [line[key] for line in metrics(run) for key in kept if key in line]


FLOAT = Precision(torch.device("cpu"), torch.float32, "as asked")


def plan(
    precision: Precision = FLOAT,
    *,
    optimizer: str = "adamw",
    betas: tuple[float, float] = (0.9, 0.95),
    average: str | None = None,
    **changes: Any,
) -> Plan:
    """A plan with the fields that tests care about."""

    def make(model: Transformer) -> torch.optim.Optimizer:
        return make_optimizer(optimizer, model, 1e-3, betas=betas)

    return Plan(precision, make, make_average(average), **changes)


def single(model: Transformer, precision: Precision = FLOAT, **changes: Any) -> Strategy:
    """A strategy of one process."""
    return Strategy(model, plan(precision, **changes), Group())
