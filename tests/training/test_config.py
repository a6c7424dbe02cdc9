"""Arguments are read without torch, and settings that contradict each other are declined."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from anyformer.errors import UserError
from anyformer.families import preset
from anyformer.training.config import TrainConfig


def test_a_config_costs_no_torch():
    code = (
        "import sys; from anyformer.cli import train; from anyformer.runs.directory import model_directory; "
        "train.read_arguments(['gpt2', '--steps', '3']); sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_what_can_be_cut_into_flat_pieces():
    options: dict[str, Any] = {"preset": "gpt2-nano", "model": preset("gpt2-nano"), "processes": 2}
    TrainConfig(optimizer="adamw", engine="deepspeed", **options)
    TrainConfig(optimizer="muon", engine="fsdp", **options)
    with pytest.raises(UserError, match="whole matrices"):
        TrainConfig(optimizer="muon", engine="deepspeed", **options)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"engine": "xla", "processes": 2}, "one process: leave --processes out"),
        ({"engine": "xla-ddp", "dtype": "float16"}, "float16 does not work with --engine xla-ddp"),
        ({"engine": "xla", "dtype": "int8"}, "int8 does not work with --engine xla"),
        ({"device": "xla:0"}, "comes with an engine: give --engine xla"),
    ],
)
def test_what_xla_has_no_use_for(options: dict[str, Any], says: str):
    with pytest.raises(UserError, match=says):
        TrainConfig(model=preset("gpt2-nano"), **options)


@pytest.mark.parametrize("field", ["batch_size", "context", "batch_tokens", "workers", "steps", "grad_accumulation"])
def test_numbers_that_no_memory_could_hold(field: str):
    with pytest.raises(UserError, match=f"--{field.replace('_', '-')} 1000000000000000000000000000000 is too large"):
        TrainConfig(model=preset("gpt2-nano"), **{field: 10**30})


def test_a_batch_that_no_memory_could_hold():
    with pytest.raises(UserError, match="make a batch of more than 268,435,456 tokens"):
        TrainConfig(model=preset("gpt2-nano"), batch_size=10**8, context=64).complete()


@pytest.mark.parametrize(("given", "every"), [({"steps": 15}, 1), ({"steps": 150}, 7), ({"steps": 9000}, 10), ({}, 10)])
def test_a_short_run_has_a_curve(given: dict[str, int], every: int):
    assert TrainConfig(model=preset("gpt2-nano"), **given).log_interval == every
    assert TrainConfig(model=preset("gpt2-nano"), log_every=3, **given).log_interval == 3
