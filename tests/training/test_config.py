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
