"""A run that is killed and resumed ends like one that was left alone, bit for bit."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Generator
from pathlib import Path

import pytest
from safetensors.numpy import load_file

import anyformer as af
from anyformer.cli.main import main
from anyformer.tokenizer import Tokenizer
from tests.finetuning import toys
from tests.finetuning.conftest import Tunes, arguments
from tests.training.conftest import metrics
from tests.training.kills import Starts, assert_survives, driver, places

COMMON = ["--steps=16", "--save-every=3", "--evaluate-every=7", "--log-every=3", "--grad-accumulation=2"]
COMMON += ["--keep-optimizer"]
RUNS: dict[str, tuple[str, list[str]]] = {
    "lora": ("chat", ["--lora=4", "--lora-dropout=0.2", "--packing"]),
    "full": ("preference", ["--average=ema:0.9"]),
    "qlora": ("chat", ["--lora=4", "--dora", "--quantize=int4", "--lora-dropout=0.1"]),
    "head": ("classify", ["--lora=4", "--optimizer=muon"]),
}


@pytest.fixture(scope="module")
def starts() -> Generator[Starts]:
    with driver("finetune") as start:
        yield start


def _is_whole(directory: Path) -> None:
    if not any((directory / name).exists() for name in ("config.json", "adapter_config.json")):
        return
    model, tokenizer = af.load(directory.parent)
    assert tokenizer is not None
    assert all(bool(parameter.isfinite().all()) for parameter in model.parameters())


def _survives(name: str, models: Path, tmp_path: Path, starts: Starts, kills: int) -> None:
    task, flags = RUNS[name]
    data = toys.write(tmp_path / "data.jsonl", toys.rows(task))
    _, model, *short = [each for each in arguments(models / toys.TASKS[task], data) if not each.startswith("--runs")]
    assert_survives(
        [model, *short, *COMMON, *flags], tmp_path, starts, kills, seed=kills, check=_is_whole, where=places
    )


def test_killed_twice(models: Path, tmp_path: Path, starts: Starts) -> None:
    _survives("qlora", models, tmp_path, starts, kills=2)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", RUNS)
def test_killed_twenty_times(name: str, models: Path, tmp_path: Path, starts: Starts) -> None:
    _survives(name, models, tmp_path, starts, kills=20)


def _refused(capsys: pytest.CaptureFixture[str], run: Path, *flags: str) -> str:
    assert main(["finetune", "--resume", str(run), *flags]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1, said
    return said


def test_another_run_is_not_resumed(
    tunes: Tunes, models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tunes("classify", "--steps=4", "--lora=4", "--keep-optimizer")
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    changes = ["--lora=2", "--dora", "--learning-rate=0.5", "--context=8", "--lora-alpha=3", "--labels", "yes", "no"]
    said = _refused(capsys, run, "--steps=8", *changes)
    for change in ("lora 4 -> 2", "dora False -> True", "learning-rate 0.01 -> 0.5", "lora-alpha None -> 3.0"):
        assert change in said
    for change in ("context 32 -> 8", "labels ['no', 'yes'] -> ['yes', 'no']"):
        assert change in said
    assert "leave out" in _refused(capsys, run, str(models / "decoder"))
    assert "leave out --name" in _refused(capsys, run, "--name=other")
    data = tmp_path / "classify.jsonl"
    content = data.read_text()
    toys.write(data, toys.rows("classify", 61))
    assert "the data or the tokenizer has changed since" in _refused(capsys, run, "--steps=8")
    data.write_text(content.replace('"yes"', '"no"', 1))
    assert "the data or the tokenizer has changed since" in _refused(capsys, run, "--steps=8")
    data.unlink()
    assert "There is no data at" in _refused(capsys, run, "--steps=8")
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    data.write_text(content)
    assert main(["finetune", "--resume", str(run), "--steps=8", str(models / "encoder")]) == 0
    assert metrics(run)[-1]["step"] == 8


def test_a_run_from_scratch_is_resumed_by_train(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "text.txt").write_text("the cat sat on the mat " * 200)
    argv = ["train", "gpt2-nano", f"--data={tmp_path / 'text.txt'}", "--tokenizer=char", "--context=8", "--steps=1"]
    assert main([*argv, f"--runs={tmp_path}", "--name=run", "--device=cpu"]) == 0
    capsys.readouterr()
    said = _refused(capsys, tmp_path / "run")
    assert "is for training from scratch" in said
    assert f"use `anyformer train --resume {tmp_path / 'run'}`." in said


def test_another_base_is_not_resumed_with(models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its weights, its config and its chat template are those of the beginning; a copy of the files will do."""
    base, data = tmp_path / "base", toys.write(tmp_path / "data.jsonl", toys.rows("chat"))
    shutil.copytree(models / "decoder", base)
    assert main([*arguments(base, data), "--name=run", "--steps=2", "--lora=4", "--keep-optimizer"]) == 0
    run = tmp_path / "runs" / "run"

    model, tokenizer = af.load(base)
    assert tokenizer is not None
    next(model.parameters()).data.view(-1)[5] += 1e-3
    af.save(model, base, tokenizer=tokenizer)
    assert "the model that it fine-tunes has changed since" in _refused(capsys, run, "--steps=4")
    shutil.rmtree(base)
    shutil.copytree(models / "decoder", base)
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**config, "rope_theta": 5.0, "rms_norm_eps": 0.5}))
    assert "the model that it fine-tunes has changed since" in _refused(capsys, run, "--steps=4")
    (base / "config.json").write_text(json.dumps(config))
    other = Tokenizer(tokenizer.backend, {**tokenizer.config, "chat_template": f"{toys.TEMPLATE}\n"})
    other.save(base)
    assert "the data or the tokenizer has changed since" in _refused(capsys, run, "--steps=4")
    shutil.rmtree(base)
    shutil.copytree(models / "decoder", base, copy_function=shutil.copy)
    assert main(["finetune", "--resume", str(run), "--steps=4"]) == 0
    assert metrics(run)[-1]["step"] == 4


@pytest.mark.parametrize("flags", [[], ["--lora=4"]])
def test_a_finished_run_says_how_to_train_on(
    tunes: Tunes, tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str]
) -> None:
    run = tunes("classify", "--steps=2", *flags)
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["finished.json"]
    assert "has finished after step 2" in _refused(capsys, run, "--epochs=9")
    assert main(["finetune", "--resume", str(run)]) == 0
    said = capsys.readouterr().out
    commands = re.findall(r"^(?:next)? +anyformer (\w+ .*)$", said, re.MULTILINE)
    assert [command.split()[0] for command in commands] == (["convert", "finetune"] if flags else ["finetune"])
    for command in commands:
        short = ["--steps=1", f"--runs={tmp_path / 'runs'}", "--device=cpu"] if command.startswith("finetune") else []
        assert main([*command.replace("FILE", str(tmp_path / "classify.jsonl")).split(), *short]) == 0


def test_the_base_stays_out_of_checkpoints(tunes: Tunes) -> None:
    run = tunes("chat", "--steps=2", "--lora=4", "--quantize=int8", "--keep-optimizer")
    names = load_file(run / "checkpoints" / "step-00000002" / "state.safetensors")
    weights = {name.removeprefix("model.") for name in names if name.startswith("model.")}
    assert weights
    assert all(".adapters." in name for name in weights), weights
