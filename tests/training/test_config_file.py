"""A run of version 0.1.0, stopped after half of its steps, goes on."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import anyformer as af
from anyformer.cli import train
from anyformer.errors import UserError
from anyformer.kernels.cpu_features import SWITCH
from anyformer.training.config_file import read_yaml
from tests.training.conftest import Trains, losses, metrics, prose

RUN = Path(__file__).parent / "run-0.1.0"
FLAGS = [
    *("gpt2-nano", "--tokenizer", "char", "--model.d-model", "8", "--model.decoder-layers", "1"),
    *("--model.attention.heads", "2", "--model.feed-forward.width", "16", "--model.dropout", "0.1"),
    *("--context", "8", "--batch-size", "4", "--steps", "6", "--save-every", "3", "--log-every", "1"),
    *("--grad-accumulation", "2", "--grad-clip", "0.5", "--average", "ema:0.9", "--device", "cpu"),
    *("--dtype", "float32"),
]


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """The run, as it would lie on this machine."""
    (tmp_path / "text.txt").write_text(prose(400), encoding="utf-8")
    shutil.copytree(RUN, tmp_path / "old")
    for path in (tmp_path / "old" / "config.yaml", *(tmp_path / "old").glob("checkpoints/*/run.json")):
        path.write_text(path.read_text().replace("/FOLDER", str(tmp_path)))
    return tmp_path / "old"


def test_old_names_in_config_yaml(old: Path):
    config = read_yaml(old / "config.yaml")
    assert (config.grad_accumulation, config.grad_clip) == (2, 0.5)
    assert (config.gradient_checkpointing, config.document_masking, config.whole_word_masking) == (False,) * 3


def test_a_run_of_an_earlier_version_is_resumed(
    old: Path, trains: Trains, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv(SWITCH, "0")  # compiled dropout, which that version did not have, keeps other numbers
    new = trains(*FLAGS, "--data", str(tmp_path / "text.txt"), "--cache", str(tmp_path / "cache"), name="new")
    assert train.run(["--resume", str(old)]) == 0
    assert metrics(old)[-1] == {"step": 6, "state": "finished"}
    assert losses(old) == pytest.approx(losses(new), rel=1e-5)
    ours, theirs = (dict(af.load(run / "model")[0].named_parameters()) for run in (old, new))
    for name, weight in ours.items():
        # The bias of keys adds the same to all scores of a query: its gradient is 0 but for rounding, of which AdamW
        # makes steps.
        bound = 1e-4 if name.endswith("attention.key.bias") else 1e-5
        assert (weight - theirs[name]).abs().max() < bound, name


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
