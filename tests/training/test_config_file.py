"""What a config.yaml may hold."""

from __future__ import annotations

from pathlib import Path

import pytest

from anyformer.errors import UserError
from anyformer.training.config_file import read_yaml


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("steps: 1\nsteps: 2", "'steps' is there twice"),
        ("3: 4", "name is no text"),
        ("data: &a [x]\nvalidation: *a", "aliases are not allowed"),
        ("learning_rate: 1" + "0" * 330, "learning_rate: wants a finite number, not 1"),
        ('runs: "a\\0b"', "runs can't be 'a.x00b': no path or name has a null character"),
        ('data: ["a\\0b"]', "data can't be 'a.x00b'"),
        ("steps: 1" + "0" * 30, "steps: wants a whole number below 2.63, not 1000000000000000000000000000000"),
        ("steps: 2026-11-27", "steps: wants a whole number, not '2026-11-27'"),
        ("base: gpt2\nsteps: 3", "is for fine-tuning, since it has the field base: use `anyformer finetune`"),
    ],
)
def test_what_a_config_may_not_hold(content: str, message: str, tmp_path: Path):
    (tmp_path / "config.yaml").write_text(content)
    with pytest.raises(UserError, match=message):
        read_yaml(tmp_path / "config.yaml")
