"""`anyformer plan`: what training would take."""

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

import anyformer as af
from anyformer.cli.main import main

SMALL = ("--context", "32", "--batch-size", "4", "--no-calibrate")
GPU = ("--device", "h100")
"""Counted alone: what a CPU's heap loses is not the same each time."""


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    status = main(["plan", *arguments])
    captured = capsys.readouterr()
    return status, captured.out if status == 0 else captured.err


def test_it_says_what_each_part_takes_and_whether_it_fits(capsys: pytest.CaptureFixture[str]) -> None:
    status, out = run(capsys, "llama-nano", *SMALL, "--dtype", "float32", "--steps", "100")

    assert status == 0
    for part in ("weights", "activations", "logits", "optimizer", "peak"):
        assert any(line.startswith(part) for line in out.splitlines())
    assert "It fits" in out
    assert "100 steps take" in out


def test_json_has_every_number_and_python_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    status, out = run(capsys, "llama-nano", *SMALL, *GPU, "--dtype", "float32", "--json")
    found = json.loads(out)
    same = af.plan("llama-nano", context=32, batch_size=4, dtype="float32", device="h100")

    assert status == 0
    assert found["peak"] == sum(found["memory"].values()) == same.peak
    assert found["flops"] == same.flops > 0
    assert found["parameters"] == same.parameters
    assert found["memory"]["weights"] == pytest.approx(found["formula"]["weights"], rel=0.01)


def test_what_does_not_fit_is_told_which_flags_help(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("llama-3.2-3b:decoder_layers=1,vocab_size=2000", "--context", "1024", "--batch-size", "128")
    status, out = run(
        capsys, *arguments, "--device", "t4", "--price-per-hour", "0.5", "--tokens", "1000000000", "--json"
    )
    found = json.loads(out)

    assert status == 0
    assert not found["fits"]
    fitting = [change["flags"] for change in found["changes"] if change["fits"]]
    assert fitting[0].startswith("--grad-accumulation")
    # Each kind by itself, though the first is enough.
    assert "--gradient-checkpointing" in {change["flags"] for change in found["changes"]}
    assert len([flags for flags in fitting if "--engine fsdp" in flags]) == 1
    assert found["cost"][1] == pytest.approx(found["seconds"][1] / 3600 * 0.5)


def test_the_flags_of_train_and_finetune_are_taken(capsys: pytest.CaptureFixture[str]) -> None:
    others = ("--data", "notes.txt", "--seed", "3", "--learning-rate", "1e-3", "--name", "x", "--schedule", "cosine")
    status, out = run(capsys, "llama-nano", *SMALL, *GPU, "--dtype", "float32", *others, "--json")
    _, plain = run(capsys, "llama-nano", *SMALL, *GPU, "--dtype", "float32", "--json")
    lora = ("--lora", "4", "--data", "chats.jsonl")
    tuned = run(capsys, "llama-nano", *SMALL, *GPU, "--dtype", "float32", *lora, "--json")

    assert status == tuned[0] == 0
    assert json.loads(out)["peak"] == json.loads(plain)["peak"]
    found = json.loads(tuned[1])
    assert 0 < found["trained_parameters"] < found["parameters"]


def test_a_model_for_data_centers_is_planned_as_the_readme_says(capsys: pytest.CaptureFixture[str]) -> None:
    begin = time.monotonic()
    status, out = run(capsys, "llama-3.1-8b", "--lora", "16", "--batch-size", "16", "--device", "h100", "--json")
    found = json.loads(out)

    assert status == 0
    assert time.monotonic() - begin < 120  # 4 s alone; it had taken more than 9 minutes
    frozen = found["parameters"] - found["trained_parameters"]
    assert found["memory"]["weights"] == pytest.approx(2 * frozen + 4 * found["trained_parameters"], rel=0.01)
    kinds = {change["flags"].split()[0] for change in found["changes"] if change["fits"]}
    assert kinds == {"--grad-accumulation", "--gradient-checkpointing", "--engine"}
    low, likely, high = found["cost_per_million"]
    assert 0 < low < likely < high
    assert likely == pytest.approx(found["time"]["seconds"] / found["tokens"] * 1e6 / 3600 * found["price_per_hour"])
    for part, usual in found["formula"].items():
        differs = abs(found["memory"].get(part, 0) - usual) > 0.1 * usual
        assert (part in found["differences"]) == differs


def test_what_a_million_tokens_cost_and_why_a_formula_differs_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    status, out = run(capsys, "llama-nano", *SMALL, *GPU)
    without = run(capsys, "llama-nano", *SMALL, "--device", "rtx-4090")[1]

    assert status == 0
    assert "A million tokens take" in out
    assert " and cost $" in out
    assert "--price-per-hour tells one" in " ".join(without.split())
    assert " by the formula; " in out
    assert " by the formula; " in out


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("llama-nano", "--device", "h1000"), "--device h1000"),
        (("llama-nano", *SMALL, "--engine", "ddp", "--processes", "3"), "take 3 or 6"),
        (("llama-nano", *SMALL, "--processes", "2"), "needs an --engine"),
        (("gpt2", "--task", "text", "--context", "4096"), "--context 4096"),
        (("gpt2", "--context", "1024", "--batch-size", "100000000"), "lower one of them"),
        (("bert-tiny", "--task", "chat"), "is an encoder"),
        (("llama-nano", "--task", "seq2seq"), "one stack"),
        (("llama-nano", *SMALL, "--engine", "deepspeed", "--processes", "2"), "--engine fsdp"),
        (("llama-nano", *SMALL, "--dtype", "int8", "--device", "h100"), "for CPUs"),
        (("llama-nano", "--price-per-hour", "-1"), "--price-per-hour"),
        (("llama-nano", "--tokens", "0"), "--tokens 0"),
        (("no-such-model",), "'no-such-model' (the nearest of"),
    ],
)
def test_what_makes_no_sense_is_one_sentence(
    arguments: Sequence[str], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    status, error = run(capsys, *arguments)

    assert status == 2
    assert reason in error
    assert error.count("\n") == 1


def run_directory(folder: Path, **settings: Any) -> Path:
    """What a run leaves of its settings, before its first model is saved."""
    folder.mkdir()
    (folder / "config.yaml").write_text(json.dumps(settings))
    return folder


def test_a_run_directory_is_planned_with_its_own_settings_which_flags_change(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = {"context": 16, "batch_size": 6, "steps": 7, "dtype": "float32", "optimizer": "muon"}
    trained = run_directory(tmp_path / "trained", preset="llama-nano", model={"vocab_size": 300}, **settings)
    tuned = run_directory(tmp_path / "tuned", base="llama-nano", task="text", lora=4, **settings)
    found = [
        json.loads(run(capsys, str(path), "--no-calibrate", *GPU, *flags, "--json")[1])
        for path, flags in ((trained, ()), (trained, ("--batch-size", "2", "--tokens", "320")), (tuned, ()))
    ]
    by_hand = run(capsys, "llama-nano:vocab_size=300", *GPU, "--context", "16", "--batch-size", "6",
                  "--optimizer", "muon", "--json")[1]  # fmt: skip

    assert found[0]["memory"] == json.loads(by_hand)["memory"]
    assert [each["batch_size"] for each in found] == [6, 2, 6]
    assert [each["steps"] for each in found] == [7, 10, 7]
    assert found[0]["dtype"] == "bfloat16"  # float32 was chosen for another device
    assert found[2]["trained_parameters"] < found[2]["parameters"]


def test_a_run_is_planned_for_another_task_without_its_settings(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trained = run_directory(tmp_path / "trained", preset="bert-tiny", context=16, batch_size=6, dtype="float32")
    arguments = ("--task", "classify", *GPU, "--context", "8", "--batch-size", "4", "--json")

    assert json.loads(run(capsys, str(trained), *arguments)[1])["batch_size"] == 4
