"""From text to a model that everybody can load, through the command line."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import anyformer as af
from anyformer.cli import train
from anyformer.runs.directory import model_directory
from tests.training.conftest import TINY, Trains, losses, metrics, prose

ENCODER = [flag.replace("decoder-layers", "encoder-layers") for flag in TINY]
RUNS: dict[str, tuple[list[str], str]] = {
    "gpt2-nano": (["--tokenizer", "char", *TINY], "GPT2LMHeadModel"),
    "llama": (["--tokenizer", "bpe:300", *TINY, "--model.attention.kv-heads=1"], "LlamaForCausalLM"),
    "bert": (["--tokenizer", "wordpiece:200", *ENCODER], "BertForMaskedLM"),
    "roberta": (["--tokenizer", "unigram:150", *ENCODER], "RobertaForMaskedLM"),
    "qwen3": ([*TINY, "--model.attention.head-dim=16", "--model.attention.kv-heads=2"], "Qwen3ForCausalLM"),
}
SHORT = [
    "--steps",
    "30",
    "--log-every",
    "10",
    "--context",
    "16",
    "--batch-size",
    "8",
    "--learning-rate",
    "1e-2",
    "--dtype",
    "float32",
]


@pytest.mark.parametrize("name", RUNS)
def test_a_run_leaves_what_it_promises(
    name: str, text: Path, trains: Trains, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    flags, architecture = RUNS[name]
    run = trains(name, "--data", str(text), *flags, *SHORT)
    shown = capsys.readouterr().out
    left = sorted(path.name for path in run.glob("[!.]*"))
    assert left == ["checkpoints", "config.yaml", "metrics.jsonl", "model", "report.html"]

    about, *lines, sample, end = metrics(run)
    assert about["parameters"] > 0
    assert about["peak_flops_per_second"] > 1e9
    assert sample["sample"][0].keys() == {"before", "written", "after"}
    assert end == {"step": 30, "state": "finished"}
    assert [line["step"] for line in lines] == [0, 8, 10, 16, 20, 24, 30, 30]
    steps = [line for line in lines if "loss" in line]
    assert set(steps[0]) == {
        "step",
        "loss",
        "learning_rate",
        "gradient_norm",
        "tokens",
        "tokens_per_second",
        "flops_per_second",
        "elapsed",
    }
    assert [line["tokens"] for line in steps] == [1280, 2560, 3840]
    assert lines[-1]["validation_loss"] < 0.9 * lines[0]["validation_loss"]
    causal = name not in ("bert", "roberta")
    assert ("bits_per_byte" in lines[0]) is causal

    model, tokenizer = af.load(model_directory(run))
    assert tokenizer is not None
    tokens = model.config.special_tokens
    assert model.config.vocab_size == tokenizer.vocab_size
    assert (tokens.bos, tokens.pad) == (tokenizer.bos, tokenizer.pad)
    assert tokens.eos == (() if tokenizer.eos is None else (tokenizer.eos,))
    raw: dict[str, Any] = json.loads((run / "model" / "config.json").read_text())
    assert raw["architectures"] == [architecture]

    transformers: Any = pytest.importorskip("transformers")
    theirs = getattr(transformers, architecture).from_pretrained(run / "model").eval()
    ids = torch.tensor([tokenizer.encode("The cat sat on my house.")[:16]])
    with torch.inference_mode():
        torch.testing.assert_close(model(ids).logits, theirs(ids).logits, rtol=1e-4, atol=1e-5)
    auto = transformers.AutoTokenizer.from_pretrained(run / "model")
    assert auto("The cat sat on my house.")["input_ids"] == tokenizer.encode("The cat sat on my house.")

    assert "before     validation loss" in shown
    assert "after      validation loss" in shown
    assert f"anyformer {'generate' if causal else 'fill'} {run} " in shown

    again = tmp_path / "again"
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["preset"] == name
    assert train.run(["--config", str(run / "config.yaml"), "--runs", str(tmp_path), "--name", "again"]) == 0
    assert losses(again) == losses(run)
    weights = "model/model.safetensors"
    assert (again / weights).read_bytes() == (run / weights).read_bytes()
    repeated = yaml.safe_load((again / "config.yaml").read_text())
    assert {**repeated, "runs": config["runs"]} == config


@pytest.mark.parametrize("kind", ["restores", "translates"])
def test_a_sample_fits_into_the_model(kind: str, text: Path, trains: Trains, tmp_path: Path):
    lines = text.read_text().splitlines()
    (tmp_path / "ours.txt").write_text("\n".join(lines))
    (tmp_path / "theirs.txt").write_text("\n".join(line.upper() for line in lines))
    pairs = ["--source", str(tmp_path / "ours.txt"), "--target", str(tmp_path / "theirs.txt")]
    data = ["--data", str(text)] if kind == "restores" else pairs
    layers = [*ENCODER, "--model.decoder-layers=1"]
    run = trains("transformer-tiny", *data, "--tokenizer", "bpe:300", *layers, *SHORT, name="it is finished")
    *_, sample, end = metrics(run)
    assert len(sample["sample"]) == 3
    assert end["state"] == "finished"


def test_another_seed_is_another_run(text: Path, trains: Trains):
    flags = ["gpt2-nano", "--data", str(text), "--tokenizer", "char", *TINY, *SHORT]
    assert losses(trains(*flags, name="a")) != losses(trains(*flags, "--seed", "1", name="b"))


def test_a_run_by_the_clock_ends_on_time(text: Path, trains: Trains):
    run = trains("gpt2-nano", "--data", str(text), *TINY, "--minutes", "0.1", "--context", "16", "--log-every", "1")
    lines = metrics(run)
    assert max(line.get("elapsed", 0) for line in lines) < 6
    rates = [line["learning_rate"] for line in lines if "learning_rate" in line]
    assert rates[-1] < 0.15 * max(rates)


def test_evaluations_in_between_save_the_model(text: Path, trains: Trains):
    run = trains("gpt2-nano", "--data", str(text), *TINY, *SHORT, "--evaluate-every", "10")
    assert [line["step"] for line in metrics(run) if "validation_loss" in line] == [0, 10, 20, 30]
    assert [line["step"] for line in metrics(run) if "sample" in line] == [10, 20, 30, 30]


def test_own_validation_text_and_tokenizer(text: Path, trains: Trains, tmp_path: Path):
    other = tmp_path / "other.md"
    other.write_text(prose(400, seed=9) + "A zebra!\n", encoding="utf-8")
    first = trains("gpt2-nano", "--data", str(text), "--validation", str(other), "--tokenizer", "char", *TINY, *SHORT)
    _, tokenizer = af.load(first / "model")
    assert tokenizer is not None
    assert tokenizer.id("z") is not None
    second = trains("gpt2-nano", "--data", str(text), "--tokenizer", str(first), *TINY, *SHORT, name="second")
    _, same = af.load(second / "model")
    assert same is not None
    assert same.fingerprint == tokenizer.fingerprint


def test_several_files_and_folders(tmp_path: Path, trains: Trains, capsys: pytest.CaptureFixture[str]):
    folder = tmp_path / "more"
    folder.mkdir()
    for number in range(3):
        (folder / f"{number}.md").write_text(prose(400, seed=number))
    lines = [json.dumps({"text": prose(80, seed=number)}) for number in range(30)]
    (tmp_path / "lines.jsonl").write_text("\n".join(lines))
    run = trains("gpt2-nano", "--data", str(folder), str(tmp_path / "lines.jsonl"), *TINY, *SHORT)
    assert "in 4 files" in capsys.readouterr().out
    model, tokenizer = af.load(run / "model")
    assert tokenizer is not None
    assert model.config.special_tokens.eos == (tokenizer.id("<|endoftext|>"),)


def test_a_given_vocabulary_stays(text: Path, trains: Trains):
    run = trains("gpt2-nano", "--data", str(text), "--tokenizer", "char", *TINY, *SHORT, "--model.vocab-size", "128")
    assert af.load(run / "model")[0].config.vocab_size == 128


def test_bfloat16_learns_as_well(text: Path, trains: Trains):
    flags = ["gpt2-nano", "--data", str(text), "--tokenizer", "char", *TINY, *SHORT]
    full = losses(trains(*flags, name="full"))
    half = losses(trains(*flags, "--dtype", "bfloat16", name="half"))
    assert half[-1] == pytest.approx(full[-1], rel=0.06)
    assert half != full
    model, _ = af.load(Path(str(text)).parent / "runs" / "half" / "model")
    assert model.token_embedding.table.weight.dtype == torch.float32


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
    first = next(line for line in lines if "tokens" in line)
    assert first["tokens"] == first["step"] * 12 * 64 > 0
    assert [line["validation_loss"] for line in lines if "validation_loss" in line][-1] <= 1.885
