"""Continued pretraining on plain text, through the command line."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest

import anyformer as af
from anyformer.cli.main import main
from anyformer.tokenizer import Tokenizer
from tests.finetuning import toys
from tests.finetuning.conftest import arguments
from tests.training.conftest import losses, metrics

TEXTS = [str(row["text"]) for row in toys.rows("classify", 160)]


@pytest.fixture(autouse=True)
def _shorter(monkeypatch: pytest.MonkeyPatch) -> None:
    """What takes the time of a run as short as these is left out."""
    monkeypatch.setattr("anyformer.finetuning.measure._general_text", lambda *_: None)


@pytest.fixture
def span_corruption(tmp_path: Path) -> Path:
    """T5 with the sentinels that its objective needs."""
    model, _ = toys.encoder_decoder()
    tokenizer = Tokenizer.train([toys.WORDS * 9], "bpe:290", special="span_corruption")
    tokens = {"eos": (tokenizer.eos,), "pad": tokenizer.pad, "decoder_start": tokenizer.pad}
    config = model.config.replace(vocab_size=tokenizer.vocab_size, special_tokens=tokens)
    af.save(af.build(config), tmp_path / "t5", tokenizer=tokenizer)
    return tmp_path / "t5"


def _tune(model: Path, data: Path, *flags: str, name: str = "run") -> Path:
    short = ["--task=text", "--context=16", f"--cache={data.parent / 'cache'}", f"--name={name}", *flags]
    assert main([*arguments(model, data), *short]) == 0
    return data.parent / "runs" / name


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    """A plain text."""
    (tmp_path / "cache").mkdir()
    (tmp_path / "notes.txt").write_text("\n\n".join(TEXTS), encoding="utf-8")
    return tmp_path / "notes.txt"


def _is_learned(run: Path, share: float = 0.7) -> None:
    loss = [line["validation_loss"] for line in metrics(run) if "validation_loss" in line]
    assert loss[-1] < share * loss[0]
    model, tokenizer = af.load(run)
    assert tokenizer is not None
    assert model.config.head.kind == "language_model"


@pytest.mark.parametrize("kind", ["encoder", "t5"])
def test_what_is_masked_or_corrupted_is_learned(kind: str, models: Path, notes: Path, span_corruption: Path) -> None:
    run = _tune(span_corruption if kind == "t5" else models / kind, notes, "--epochs=4")
    _is_learned(run)
    assert json.loads((run / "evaluation.json").read_text())["metrics"] == {}


@pytest.mark.parametrize(
    ("flags", "share"),
    # All that is learned by an adapter of a random model is little.
    [(["--epochs=2"], 0.7), (["--epochs=1", "--learning-rate=3e-2", "--lora=8", "--quantize=int8"], 0.95)],
)
def test_the_next_token_is_learned(
    flags: list[str], share: float, models: Path, notes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = _tune(models / "decoder", notes, *flags)
    said = capsys.readouterr().out
    _is_learned(run, share)
    size = len(notes.read_text())
    assert f"\ndata       text, {size:,} characters in 1 file\n" in said
    found = json.loads((run / "evaluation.json").read_text())
    perplexity = found["metrics"]["perplexity"]
    first, *_, last = [line["validation_loss"] for line in metrics(run) if "validation_loss" in line]
    # All of the text that is held out is measured; the last window begins a little later than in validation.
    assert perplexity["before"] == pytest.approx(math.exp(first), rel=1e-2)
    assert perplexity["after"] == pytest.approx(math.exp(last), rel=1e-2)
    assert perplexity["interval"][0] < perplexity["after"] < perplexity["interval"][1]
    (line,) = [line for line in said.splitlines() if line.startswith("perplexity")]
    assert line.endswith(f"; {found['examples']} windows of text held out")
    assert found["measured_on"] in (run / "report.html").read_text()
    assert found["measured_on"] in (run / "model" / "README.md").read_text()


def test_rows_with_a_column_of_text(models: Path, tmp_path: Path) -> None:
    rows = [{"body": text, "number": number} for number, text in enumerate(TEXTS)]
    options = {"task": "text", "columns": {"text": "body"}, "context": 16, "batch_size": 8, "learning_rate": 1e-2}
    where = {"cache": tmp_path, "runs": tmp_path / "runs", "device": "cpu", "dtype": "float32"}
    result = af.finetune(models / "decoder", rows, validation=rows[:30], epochs=2, **options, **where)
    before, after = result.metrics["before"], result.metrics["after"]
    assert after["validation_loss"] < 0.7 * before["validation_loss"]
    assert after["perplexity"] < 0.3 * before["perplexity"]


@pytest.mark.parametrize("flags", [[], ["--lora=8", "--lora-dropout=0.2", "--packing"]])
def test_a_resumed_run_is_the_uninterrupted_one(
    flags: list[str], models: Path, notes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = _tune(models / "decoder", notes, "--steps=12", "--save-every=3", "--keep-optimizer", *flags)
    half = whole.parent / "half"
    shutil.copytree(whole, half)
    shutil.rmtree(half / "checkpoints" / "step-00000012")
    shutil.rmtree(half / "model")
    assert main(["finetune", "--resume", str(half)]) == 0
    assert "after step 9" in capsys.readouterr().out
    assert losses(half) == losses(whole)
    names = sorted(path.name for path in (whole / "model").glob("*.safetensors"))
    assert names
    for name in names:
        assert (half / "model" / name).read_bytes() == (whole / "model" / name).read_bytes()
