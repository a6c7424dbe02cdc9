"""Whatever goes wrong: one sentence, and nothing half-written."""

from __future__ import annotations

import errno
import os
import signal
import sys
import time
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch

import anyformer as af
from anyformer.cli import train
from anyformer.errors import UserError
from anyformer.runs.directory import RunDirectory
from tests.forked import ANYFORMER, Forks, Program
from tests.training.conftest import TINY, Trains, metrics, prose

SHORT = ["--steps", "20", "--context", "16", "--batch-size", "4", "--dtype", "float32"]


@pytest.fixture
def refuses(tmp_path: Path):
    """Runs the command, which must refuse with this message and leave no folder that it made."""

    def run(message: str, *argv: str) -> None:
        runs = tmp_path / "runs"
        with pytest.raises(UserError, match=message):
            train.run([*argv, *TINY, *SHORT, "--runs", str(runs)])
        assert not runs.exists()

    return run


def test_missing_data(refuses: Any, tmp_path: Path):
    refuses("There is no data at .*nothing.txt", "gpt2-nano", "--data", str(tmp_path / "nothing.txt"))


def test_a_folder_that_was_there_stays(refuses: Any, tmp_path: Path):
    (tmp_path / "runs").mkdir()
    with pytest.raises(AssertionError, match="runs"):
        refuses("There is no data", "gpt2-nano", "--data", str(tmp_path / "nothing.txt"))
    assert not list((tmp_path / "runs").iterdir())


def test_empty_data(refuses: Any, tmp_path: Path):
    (tmp_path / "empty.txt").touch()
    refuses("There is no text to read: .*empty.txt is empty", "gpt2-nano", "--data", str(tmp_path / "empty.txt"))


@pytest.mark.parametrize("size", [1, 2, 10, 17])
def test_data_shorter_than_one_context(size: int, refuses: Any, tmp_path: Path):
    (tmp_path / "short.txt").write_text(prose()[:size])
    flags = ["--data", str(tmp_path / "short.txt"), "--tokenizer", "char"]
    refuses("too short: .*(one context of 16|at least 2)", "gpt2-nano", *flags, "--context", "16", "--batch-size", "2")


def test_validation_text_of_one_character(refuses: Any, text: Path, tmp_path: Path):
    (tmp_path / "v.txt").write_text("a")
    flags = ["--data", str(text), "--validation", str(tmp_path / "v.txt"), "--tokenizer", "char"]
    refuses("validation data is too short", "gpt2-nano", *flags)


def test_pairs_without_the_names_of_their_fields(refuses: Any, tmp_path: Path):
    (tmp_path / "pairs.tsv").write_text("prompt\ttarget\na\tb\n")
    said = "has no field 'text': that is 'prompt' here. It has 'prompt', 'target'. Name .* with --source and --target"
    refuses(said, "t5-nano", "--data", str(tmp_path / "pairs.tsv"))


def test_binary_data(refuses: Any, tmp_path: Path):
    (tmp_path / "image.txt").write_bytes(b"GIF89a\x00\xff\xfe" * 100)
    refuses("image.txt, line 1, is not UTF-8 text", "gpt2-nano", "--data", str(tmp_path / "image.txt"))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("bpe", "needs the size of its vocabulary"),
        ("bqe:300", "did you mean 'bpe'"),
        ("bpe:10", "bpe:10|10"),
        ("no/such/tokenizer", "give the path of a tokenizer"),
    ],
)
def test_bad_tokenizers(spec: str, message: str, refuses: Any, text: Path):
    refuses(message, "gpt2-nano", "--data", str(text), "--tokenizer", spec)


def test_a_vocabulary_smaller_than_the_tokenizers(refuses: Any, text: Path, trains: Trains, tmp_path: Path):
    flags = ["gpt2-nano", "--data", str(text), "--model.vocab-size", "8"]
    message = "--model.vocab-size 8 is too small for the tokenizer, which has"
    refuses(message, *flags, "--tokenizer", "char")
    (tmp_path / "tokenizer").mkdir()
    af.Tokenizer.train([prose()], "bpe:300").save(tmp_path / "tokenizer")
    refuses(message, *flags, "--tokenizer", str(tmp_path / "tokenizer"))


def test_masked_training_with_a_tokenizer_without_a_mask(refuses: Any, text: Path, tmp_path: Path):
    af.Tokenizer.train([prose()], "bpe:300").save(tmp_path)
    with pytest.raises(UserError, match="needs a tokenizer with a mask token"):
        train.run(["bert-tiny", "--data", str(text), "--tokenizer", str(tmp_path), "--runs", str(tmp_path / "runs")])
    assert not (tmp_path / "runs").exists()


def test_a_head_that_can_not_be_trained_from_scratch(refuses: Any, text: Path):
    refuses(
        "needs a language_model head", "gpt2-nano", "--data", str(text), "--model.head.kind", "token_classification"
    )


def test_two_runs_into_one_directory(text: Path, trains: Trains, tmp_path: Path):
    flags = ["gpt2-nano", "--data", str(text), "--tokenizer", "char", *TINY, *SHORT]
    run = trains(*flags)
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    with pytest.raises(UserError, match="exists already: choose another --name"):
        train.run([*flags, "--runs", str(tmp_path / "runs"), "--name", "run"])
    assert before == {path: path.stat().st_mtime_ns for path in run.rglob("*")}


def test_a_loss_that_is_not_a_number(text: Path, tmp_path: Path):
    flags = ["gpt2-nano", "--data", str(text), "--tokenizer", "char", *TINY, *SHORT, "--warmup", "0"]
    where = ["--runs", str(tmp_path), "--name", "run"]
    with pytest.raises(UserError, match=r"after step \d+ the .* is .*smaller --learning-rate.* is that of step 0") as e:
        train.run([*flags, *where, "--learning-rate", "1e30"])
    assert "\n" not in str(e.value)
    model, _ = af.load(tmp_path / "run" / "model")
    assert all(bool(parameter.isfinite().all()) for parameter in model.parameters())


def test_a_last_step_that_ruins_the_model_is_not_saved(text: Path, tmp_path: Path):
    flags = ["gpt2-nano", "--data", str(text), "--tokenizer", "char", *TINY, *SHORT[2:], "--warmup", "0"]
    with pytest.raises(UserError, match=r"after step 1 .* is that of step 0"):
        train.run([*flags, "--steps", "1", "--learning-rate", "1e30", "--runs", str(tmp_path), "--name", "run"])
    model, _ = af.load(tmp_path / "run" / "model")
    assert max(float(parameter.detach().abs().max()) for parameter in model.parameters()) < 10


@pytest.mark.parametrize("wrong", [["--seed", str(1 << 63)], ["--weight-decay", "nan"]])
def test_numbers_that_are_none(wrong: list[str], refuses: Any, text: Path):
    refuses(wrong[1], "gpt2-nano", "--data", str(text), *wrong)


@pytest.mark.parametrize("error", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory")])
def test_memory_that_does_not_suffice(error: Exception, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr("anyformer.training.strategies.base.Strategy.step", fail)
    flags = ["gpt2-nano", "--data", str(text), "--tokenizer", "char", *TINY, *SHORT]
    with pytest.raises(UserError, match=r"not enough memory.*--batch-size.* is that of step 0"):
        train.run([*flags, "--runs", str(tmp_path), "--name", "run"])
    assert metrics(tmp_path / "run")[-1]["state"] == "stopped"


def _full(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_disk_that_fills_up_while_saving(text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    module = import_module("anyformer.checkpoint.save")
    whole = module.write_tensors

    def fills(*arguments: Any) -> None:
        monkeypatch.setattr(module, "write_tensors", _full)
        whole(*arguments)

    monkeypatch.setattr(module, "write_tensors", fills)
    flags = ["gpt2-nano", "--data", str(text), "--tokenizer", "char", *TINY, *SHORT]
    with pytest.raises(UserError, match=r"can't be written: No space left on device\. The model in .* that of step 0"):
        train.run([*flags, "--runs", str(tmp_path), "--name", "run"])
    af.load(tmp_path / "run" / "model")
    left = [path.name for path in (tmp_path / "run").glob("[!.]*")]
    assert sorted(left) == ["config.yaml", "metrics.jsonl", "model", "report.html"]


def test_a_disk_that_fills_up_while_logging(text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    whole = RunDirectory.log

    def log(self: RunDirectory, record: dict[str, Any]) -> None:
        # what the kernel says of a full disk, through a real file
        place = Path("/dev/full")
        if record["step"] > 0 and place.exists():
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr("anyformer.runs.directory.METRICS", str(place))
                whole(self, record)
        whole(self, record)

    monkeypatch.setattr(RunDirectory, "log", log)
    flags = ["gpt2-nano", "--data", str(text), "--tokenizer", "char", *TINY, *SHORT]
    with pytest.raises(UserError, match=r"can't be written: No space left on device\. The model in .* that of step 0"):
        train.run([*flags, "--runs", str(tmp_path), "--name", "run"])
    af.load(tmp_path / "run" / "model")


@pytest.mark.skipif(not hasattr(os, "geteuid") or sys.platform != "linux", reason="needs Linux's file size limit")
@pytest.mark.parametrize("limit", [500, 30_000, 50_000])
def test_files_that_the_system_refuses_to_write(limit: int, text: Path, tmp_path: Path, programs: Forks):
    """A file size limit makes real writes fail, wherever they come from: first the tokens, then the model."""
    code = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit})); {ANYFORMER}"
    flags = ["gpt2-nano", "--data", str(text), "--tokenizer", "char", *TINY, *SHORT, "--runs", str(tmp_path / "runs")]
    done = programs.start(code, "train", *flags)
    out, err = done.communicate(timeout=120)
    assert done.returncode == 2, err
    assert err.count("\n") == 1
    assert "can't be written" in err
    assert "Traceback" not in out + err
    assert not (tmp_path / "runs").exists()


@pytest.mark.skipif(os.name != "posix", reason="signals as POSIX has them")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_saves_the_model_and_says_where(number: signal.Signals, text: Path, tmp_path: Path, programs: Forks):
    flags = ["gpt2-nano", "--data", str(text), "--tokenizer", "char", *TINY, *SHORT[2:], "--steps", "1000000"]
    process = programs.start(ANYFORMER, "train", *flags, "--runs", str(tmp_path), "--name", "run")
    try:
        _until(tmp_path / "run" / "metrics.jsonl", '"loss"', process)
        process.send_signal(number)
        out, err = process.communicate()
    finally:
        process.kill()
    assert process.returncode == 128 + number
    assert "Traceback" not in err
    assert "Stopped after step" in out
    assert str(tmp_path / "run" / "model") in out
    model, _ = af.load(tmp_path / "run" / "model")
    torch.manual_seed(0)
    fresh = af.build(model.config)
    assert not torch.equal(fresh.token_embedding.table.weight, model.token_embedding.table.weight)
    assert metrics(tmp_path / "run")[-1]["step"] > 0


@pytest.mark.skipif(os.name != "posix", reason="signals as POSIX has them")
def test_ctrl_c_before_training_leaves_nothing(tmp_path: Path, programs: Forks):
    process = programs.start(ANYFORMER, "train", "gpt2-nano", "--data", "-", "--runs", str(tmp_path / "runs"))
    try:
        _until(tmp_path / "runs" / "gpt2-nano-1", "", process)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate()
    finally:
        process.kill()
    assert process.returncode == 130
    assert "Traceback" not in err
    assert not (tmp_path / "runs").exists()


def _until(path: Path, content: str, process: Program) -> None:
    """Wait until there is this in the file."""
    for _ in range(1200):
        if path.exists() and (not content or content in path.read_text()):
            return
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    raise AssertionError(f"{path} never had {content}")
