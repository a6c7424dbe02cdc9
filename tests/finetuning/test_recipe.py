"""Continued pretraining on plain text, and classifiers of few rows in classes of unequal size."""

from __future__ import annotations

import json
import math
import re
import shutil
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import yaml

import anyformer as af
from anyformer.cli.main import main
from anyformer.evaluation.label_metrics import only_class
from anyformer.finetuning.config import FinetuneConfig, complete, resumed
from anyformer.finetuning.recipe import class_weights
from anyformer.tokenizer import Tokenizer
from anyformer.training.losses import ClassWeightedLoss
from tests.finetuning import toys
from tests.finetuning.conftest import Tunes, arguments
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


def unequal(rare: int = 5) -> list[toys.Row]:
    """Sixty rows, so many of them of one class."""
    rows = toys.rows("classify", 160)
    return [row for row in rows if row["label"] == "no"][: 60 - rare] + [r for r in rows if r["label"] == "yes"][:rare]


def test_few_rows_get_more_steps_and_weights_and_all_classes_are_held_out(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = toys.write(tmp_path / "few.jsonl", unequal())
    arguments = ["finetune", str(models / "encoder"), "--data", str(data), "--runs", str(tmp_path / "runs")]
    assert main([*arguments, "--device=cpu", "--dtype=float32"]) == 0
    said = capsys.readouterr().out
    assert ": 140 steps" in said
    held = re.search(r"validation\n.*\n.*\n +labels +2: no \d, yes 1\n", said)
    assert held is not None
    assert re.search(r"balance +rows count in the loss by their class: no 0\.54, yes 6\.\d", said)


@pytest.mark.parametrize(
    ("examples", "batch_size", "steps"), [(20, 8, 60), (54, 8, 140), (240, 32, 150), (3000, 32, 282)]
)
def test_the_default_length(examples: int, batch_size: int, steps: int) -> None:
    model = toys.MODELS["encoder"]()[0].config
    config = complete(FinetuneConfig(base="x", data=("y",)), model, "classify", examples=examples)
    assert config.batch_size == batch_size
    assert config.epochs is not None
    assert abs(config.epochs * -(-examples // batch_size) - steps) <= 20


def test_many_balanced_rows_are_trained_on_as_before() -> None:
    model = toys.MODELS["encoder"]()[0].config
    config = complete(FinetuneConfig(base="x", data=("y",)), model, "classify", examples=5000)
    assert (config.batch_size, config.epochs) == (32, 3.0)
    assert class_weights({"a": 100, "b": 140}, ["a", "b"]) is None


def test_weights_are_inverse_to_the_frequency_of_a_class_and_one_in_the_mean() -> None:
    weights = class_weights({"a": 48, "b": 6}, ["a", "b", "c"])
    assert weights == pytest.approx([27 / 48, 27 / 6, 1.0])


def test_the_loss_of_a_row_is_weighted_in_training_alone() -> None:
    torch.manual_seed(0)
    head = {"kind": "classification", "labels": 3, "problem_type": "single_label_classification"}
    model = toys.encoder(head=head)[0]
    tokens, targets = torch.randint(5, 9, (4, 6)), torch.tensor([0, 2, 2, 1])
    weights = torch.tensor([0.5, 1.0, 4.0])
    loss = ClassWeightedLoss(model.eval(), weights.tolist())
    logits = model(tokens).logits
    assert logits is not None
    torch.testing.assert_close(loss(tokens=tokens, targets=targets), F.cross_entropy(logits, targets))
    model.training = True  # without dropout, which asks its own module
    each = F.cross_entropy(logits, targets, reduction="none") * weights[targets]
    torch.testing.assert_close(loss(tokens=tokens, targets=targets, return_logits=False), each.mean())


def test_a_run_of_before_goes_on_without_balance(tunes: Tunes) -> None:
    run = tunes("classify", "--steps=4", rows=unequal())
    file = run / "config.yaml"
    values = yaml.safe_load(file.read_text(encoding="utf-8"))
    assert values.pop("balance") is True
    assert resumed(run, {}).balance is True
    file.write_text(yaml.safe_dump(values), encoding="utf-8")
    assert resumed(run, {}).balance is False


def test_a_model_that_predicts_one_class_is_told_of_and_the_sample_marks_what_is_wrong(
    tunes: Tunes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    held = toys.write(
        tmp_path / "held.jsonl", [{"text": "the cat", "label": "yes"}, {"text": "the mat", "label": "no"}]
    )
    tunes("classify", "--steps=1", "--learning-rate=1e-9", f"--validation={held}", rows=unequal(20))
    said = " ".join(capsys.readouterr().out.split())
    ((right, wrong),) = [pair for pair in (("yes", "no"), ("no", "yes")) if f"predictions are {pair[0]}:" in said]
    assert f"All 2 predictions are {right}: the model tells no classes apart. Try more rows" in said
    assert said.count("(wrong: ") == 1
    assert f" {right} (wrong: {wrong})" in said


def test_one_class_is_enough_where_there_is_one() -> None:
    assert only_class(["a", "b"], ["a", "a"]) is not None
    assert only_class(["a", "b"], ["a", "b"]) is None
    assert only_class(["a", "a"], ["a", "a"]) is None


def test_the_tokenizer_of_the_base_is_read_once(tunes: Tunes, models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read, find = list[Path](), Tokenizer.find

    def counted(directory: Path) -> Tokenizer | None:
        read.append(directory)
        return find(directory)

    monkeypatch.setattr(Tokenizer, "find", counted)
    tunes("completion", "--steps=1")
    assert read.count(models / "decoder") == 1
