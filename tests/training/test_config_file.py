"""What a config.yaml may hold, and what only the command line may decide."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

import pytest

from anyformer.cli import train as command
from anyformer.cli.train import read_arguments
from anyformer.errors import UserError
from anyformer.finetuning.config import FinetuneConfig, resumed
from anyformer.training.config import TrainConfig
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


def _written(folder: Path, content: str) -> Path:
    path = folder / "runs" / "one" / "config.yaml"
    path.parent.mkdir(parents=True)
    path.write_text(content, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("content", "flags"),
    [
        ("processes: 8\nengine: fsdp", "--processes 8 --engine fsdp"),
        ("engine: deepspeed", "--engine deepspeed"),
        ("track: [wandb, tensorboard]", "--track wandb tensorboard"),
        ("runs: /usr/lib", "--runs /usr/lib"),
        ("cache: /usr/lib/a b", "--cache '/usr/lib/a b'"),
        ("max_record_bytes: 1000000000000", "--max-record-bytes 1000000000000"),
        ("data: ['hf:someone/set', notes.txt]", "--data hf:someone/set notes.txt"),
        ("validation: ['hf:someone/set']", "--validation hf:someone/set"),
    ],
)
def test_what_it_asks_for_is_given_as_flags(content: str, flags: str, tmp_path: Path) -> None:
    path = _written(tmp_path, content)
    with pytest.raises(UserError) as refused:
        read_arguments(["--config", str(path)])
    assert str(refused.value).endswith(f"If you want it, add {flags}")
    agreed = read_arguments(["--config", str(path), *shlex.split(flags)])
    assert agreed != read_arguments([])


def test_other_values_are_an_answer_as_well(tmp_path: Path) -> None:
    path = _written(tmp_path, "processes: 8\nengine: fsdp")
    config = read_arguments(["--config", str(path), "--processes", "1", "--engine", "None"])
    assert (config.processes, config.engine) == (1, None)


def test_a_run_that_is_resumed_starts_no_processes_by_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "launch", lambda *_: pytest.fail("it was started"))
    path = _written(tmp_path, "processes: 2\nengine: ddp\nruns: /somewhere/else")
    with pytest.raises(UserError, match=r"add --processes 2 --engine ddp$"):
        command.run(["--resume", str(path.parent)])


def test_what_every_run_writes_is_read_without_a_question(tmp_path: Path) -> None:
    """The folder of its runs, a cache that is there, and data by their absolute paths."""
    (tmp_path / "cache" / "tokens").mkdir(parents=True)
    content = f"runs: {tmp_path / 'runs'}\ncache: {tmp_path / 'cache'}\ndata: [{tmp_path / 'notes.txt'}]\nworkers: 1"
    config = read_arguments(["--config", str(_written(tmp_path, content))])
    assert config.data == (str(tmp_path / "notes.txt"),)
    assert (config.cache, config.workers) == (tmp_path / "cache", 1)


def test_workers_of_a_file_are_no_more_than_cores(tmp_path: Path) -> None:
    path = _written(tmp_path, "workers: 1000")
    assert read_arguments(["--config", str(path)]).workers is None
    assert read_arguments(["--config", str(path), "--workers", "3"]).workers == 3


@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="only root may give files away")
def test_a_file_of_another_user_names_no_data(tmp_path: Path) -> None:
    """Root would read for them what they may not."""
    path = _written(tmp_path, "data: /etc/shadow\ntokenizer: char")
    os.chown(path, 12345, 12345)
    with pytest.raises(UserError, match=r"add --data /etc/shadow --tokenizer char$"):
        read_arguments(["--config", str(path)])


def test_the_size_of_the_vocabulary_stays_when_the_same_data_is_given(tmp_path: Path) -> None:
    path = _written(tmp_path, "data: ['hf:someone/set']\nmodel: {vocab_size: 999}")
    assert read_arguments(["--config", str(path), "--data", "hf:someone/set"]).vocab_size == 999
    assert read_arguments(["--config", str(path), "--data", "other.txt"]).vocab_size is None


def test_every_field_is_thought_of() -> None:
    """A new one that starts, contacts or writes something belongs into `check_consent`."""
    harmless = {
        *("preset", "field", "objective", "document_masking", "whole_word_masking", "label_smoothing"),
        *("context", "batch_size", "batch_tokens", "grad_accumulation", "steps", "minutes", "optimizer"),
        *("learning_rate", "schedule", "warmup", "decay", "weight_decay", "beta2", "grad_clip", "average"),
        *("gradient_checkpointing", "compile", "zero_stage", "save_every", "keep", "keep_optimizer", "evaluate_every"),
        *("log_every", "seed", "name", "device", "restarts", "dtype", "model", "vocab_size", "max_length"),
        "encoding",  # only of text
    }
    checked = {"processes", "engine", "tensor_parallel", "context_parallel"}
    checked |= {"track", "runs", "workers", "scheduler", "max_record_bytes"}
    read = {"data", "validation", "source", "target", "tokenizer", "cache"}
    assert set(TrainConfig.__dataclass_fields__) == harmless | checked | read


def test_a_model_of_the_hub_is_fetched_when_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """But for one that was fetched before."""
    path = _written(tmp_path, "base: someone/model\ndata: [chats.jsonl]\nallow_pickle: true\nsteps: 3")
    with pytest.raises(UserError, match=r"add --allow-pickle someone/model$"):
        resumed(path.parent, {})
    assert resumed(path.parent, {"base": "someone/model", "allow_pickle": True}).base == "someone/model"
    monkeypatch.setattr("anyformer.checkpoint.hub.is_cached", lambda name: name == "someone/model")
    assert resumed(path.parent, {"allow_pickle": True}).steps == 3


def test_every_field_of_fine_tuning_is_thought_of() -> None:
    """As above."""
    harmless = {
        *("task", "columns", "header", "labels", "label_kind", "train_on", "packing", "skip_faulty", "epochs", "lora"),
        *("lora_alpha", "lora_dropout", "targets", "dora", "rslora", "quantize", "beta", "loss", "system", "balance"),
    }
    own = set(FinetuneConfig.__dataclass_fields__) - set(TrainConfig.__dataclass_fields__)
    assert own == harmless | {"base", "allow_pickle"}
