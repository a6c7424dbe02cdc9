"""The model that is fine-tuned: the dtype of its weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import anyformer as af
from anyformer.console import Console
from anyformer.finetuning.config import CompleteFinetuneConfig, FinetuneConfig
from anyformer.finetuning.recipe import finetuning
from anyformer.model import Transformer
from anyformer.plan.devices import find_device
from anyformer.plan.step import count_step
from anyformer.plan.workload import make_workload
from anyformer.spec import read_config
from anyformer.training.precision import Precision
from anyformer.training.recipe import Recipe, step_products
from tests.finetuning import toys
from tests.training.conftest import single

CASES = {"chat": "decoder", "classify": "encoder", "seq2seq": "both"}
BFLOAT16 = Precision(torch.device("cpu"), torch.bfloat16, "for this test")


def recipe_of(task: str, folder: Path, **settings: Any) -> Recipe[Any]:
    """Fine-tuning of a model in float32 whose weights are numbers of bfloat16, as most language models' are."""
    base, tokenizer = toys.MODELS[CASES[task]]()
    for parameter in base.parameters():
        parameter.data = parameter.data.bfloat16().float()
    af.save(base, folder / "base", tokenizer=tokenizer)
    data = toys.write(folder / "data.jsonl", toys.rows(task))
    config = FinetuneConfig(
        base=str(folder / "base"), data=(str(data),), batch_size=4, device="cpu", dtype="bfloat16", **settings
    )
    return finetuning(config, Console(quiet=True))


def learn(recipe: Recipe[Any]) -> tuple[Tensor, dict[str, Tensor], Transformer]:
    torch.manual_seed(0)
    strategy = single(recipe.build(), BFLOAT16, loss=recipe.loss)
    loss = strategy._loss_and_gradient(0, recipe.batches.batch(0))
    model = strategy.model
    return loss, {name: part.grad for name, part in model.named_parameters() if part.grad is not None}, model


@pytest.mark.parametrize("task", CASES)
def test_weights_that_stay_are_bfloat16_and_teach_what_they_do_in_float32(
    task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipe_of(task, tmp_path, lora=4)
    loss, gradients, model = learn(recipe)
    for name, parameter in model.named_parameters():
        wide = parameter.requires_grad or "norm" in name
        assert parameter.dtype == (torch.float32 if wide else torch.bfloat16), name

    monkeypatch.setattr(CompleteFinetuneConfig, "base_dtype", "float32")
    expected, wide, _ = learn(recipe)

    assert torch.equal(loss, expected)
    assert gradients.keys() == wide.keys()
    for name, gradient in gradients.items():
        assert torch.equal(gradient, wide[name]), name


@pytest.mark.parametrize("settings", [{}, {"lora": 4, "quantize": "int8"}, {"lora": 4, "dtype": "float32"}])
def test_other_weights_are_float32(settings: dict[str, Any], tmp_path: Path) -> None:
    recipe = recipe_of("chat", tmp_path, **{key: value for key, value in settings.items() if key != "dtype"})
    config = recipe.config
    assert isinstance(config, CompleteFinetuneConfig)
    if "dtype" in settings:
        object.__setattr__(config, "dtype", settings["dtype"])
    assert {parameter.dtype for parameter in recipe.build().parameters()} == {torch.float32}


def test_a_plan_counts_the_weights_that_fine_tuning_has(tmp_path: Path) -> None:
    recipe = recipe_of("chat", tmp_path, lora=4)
    model = recipe.build()
    size = sum(part.nbytes for part in (*model.parameters(), *model.buffers()))

    values = {"task": "chat", "lora": 4, "dtype": "bfloat16", "batch_size": 2, "context": 16}
    asked = make_workload(read_config(str(tmp_path / "base")), values, find_device("cpu"))
    counted = count_step(replace(asked, in_heap=False))

    assert counted.resident["weights"] == pytest.approx(size, rel=0.01)


def test_texts_are_generated_beside_weights_that_stay_in_bfloat16(tmp_path: Path) -> None:
    """Prompts of several lengths, whose keys and values go into a cache of the base's dtype."""
    base, tokenizer = toys.MODELS["decoder"]()
    af.save(base, tmp_path / "base", tokenizer=tokenizer)
    rows = toys.rows("chat")
    for number, row in enumerate(rows):
        row["messages"][0]["content"] += " a" * (number % 7)
    data = toys.write(tmp_path / "data.jsonl", rows)
    result = af.finetune(
        tmp_path / "base", data, lora=4, steps=1, dtype="bfloat16", device="cpu", runs=tmp_path / "runs", quiet=True
    )
    assert 0 <= result.metrics["after"]["exact_match"] <= 1


@pytest.mark.parametrize("task", CASES)
def test_plan_counts_the_products_that_the_dtype_of_a_run_is_chosen_by(task: str, tmp_path: Path) -> None:
    recipe = recipe_of(task, tmp_path, context=24)
    options = {"task": task, "context": 24, "batch_size": 4, "dtype": "float32"}
    planned = make_workload(read_config(str(tmp_path / "base")), options, find_device("cpu"))
    assert step_products(planned.model, planned.config) == recipe.products
