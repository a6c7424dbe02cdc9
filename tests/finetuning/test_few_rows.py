"""A classifier of few rows, whose classes are of unequal size."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import yaml

from anyformer.cli.main import main
from anyformer.evaluation.label_metrics import only_class
from anyformer.finetuning.config import FinetuneConfig, complete, resumed
from anyformer.finetuning.recipe import class_weights
from anyformer.tokenizer import Tokenizer
from anyformer.training.losses import ClassWeightedLoss
from tests.finetuning import toys
from tests.finetuning.conftest import Tunes


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
