"""The README's figure of nanoGPT for a CPU: characters of tiny Shakespeare, 2,000 steps, 1.88."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.training.conftest import Trains, metrics

NAME = "tinyshakespeare.txt"


def _data() -> Path:
    beside = Path(__file__).parents[3] / "shared" / "data"
    path = Path(os.environ.get("ANYFORMER_DATA", beside)) / NAME
    if not path.is_file():
        pytest.skip(f"there is no {NAME} in $ANYFORMER_DATA or {beside}")
    return path


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_reaches_the_loss_of_nanogpts_readme(trains: Trains):
    run = trains(
        *("gpt2-nano", "--data", str(_data()), "--tokenizer", "char"),
        *("--steps", "2000", "--batch-size", "12", "--learning-rate", "1e-3"),
    )
    lines = metrics(run)
    assert lines[1]["tokens"] == 10 * 12 * 64
    assert lines[-1]["validation_loss"] <= 1.885
