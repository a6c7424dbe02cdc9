"""A batch in parts, or shared by processes, teaches what the whole batch does, for the loss of every task."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from anyformer.console import Console
from anyformer.finetuning.config import FinetuneConfig
from anyformer.finetuning.recipe import finetuning
from anyformer.training.recipe import Recipe
from anyformer.training.strategies.base import Strategy
from anyformer.training.strategies.group import Group
from tests.finetuning import toys
from tests.training.conftest import plan

CASES: dict[str, tuple[str, list[Any] | None, dict[str, Any]]] = {
    "chat": ("chat", None, {}),
    "packed": ("chat", None, {"packing": True}),
    "completion": ("completion", None, {"lora": 4, "label_smoothing": 0.1}),
    "preference": ("preference", None, {"label_smoothing": 0.1}),
    "one label": ("classify", None, {"label_smoothing": 0.1}),
    "several labels": (
        "classify",
        [{**row, "label": [["a"], ["b"], ["a", "c"], []][k % 4]} for k, row in enumerate(toys.rows("classify"))],
        {},
    ),
    "numbers": ("classify", [{**row, "label": k + 0.5} for k, row in enumerate(toys.rows("classify"))], {"lora": 4}),
    "tag": ("tag", None, {}),
    "cosine": ("embed", None, {}),
    "triplet": (
        "embed",
        [{"anchor": row["text"], "positive": "cat " + row["text"], "negative": "mat"} for row in toys.rows("classify")],
        {"loss": "triplet"},
    ),
    "in-batch negatives": ("embed", toys.positives(), {}),
    "class triplet": ("embed", toys.rows("classify"), {"task": "embed"}),
    "pair class": ("embed", toys.pairs_with_a_class(), {"task": "embed"}),
    "seq2seq": ("seq2seq", None, {"label_smoothing": 0.1}),
    "text": ("text", [{"text": row["text"]} for row in toys.rows("classify", 300)], {"context": 16}),
}


COMPARED = ("in-batch negatives", "class triplet")
"""What needs all examples of a batch: processes have to talk, so `test_strategies` has them."""


class Share(Group):
    """One of several processes that can't talk."""

    def __init__(self, rank: int, world_size: int) -> None:
        super().__init__()
        self.rank, self.world_size = rank, world_size


def learn(
    recipe: Recipe[Any], step: int, group: Group, parts: int, at_once: int = 1
) -> tuple[Tensor, dict[str, Tensor]]:
    """The share of a process in the loss of a batch, and the gradient that it computes, so many examples at once."""
    torch.manual_seed(0)
    model = recipe.build()
    for module in model.modules():
        if hasattr(module, "p"):
            module.p = 0.0
    smoothing = recipe.config.label_smoothing
    strategy = Strategy(model, plan(loss=recipe.loss, grad_accumulation=parts, label_smoothing=smoothing), group)
    if group.world_size == 1:
        recipe.prepare(strategy)
    strategy._threads = at_once
    assert strategy.use_threads(1) == (1 if strategy.wrapped.compares_examples else at_once)
    loss = strategy._loss_and_gradient(step, recipe.batches.batch(step))
    return loss, {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}


@pytest.mark.parametrize("case", CASES)
def test_parts_and_shares_are_the_batch(case: str, models: Path, tmp_path: Path) -> None:
    task, rows, settings = CASES[case]
    data = toys.write(tmp_path / "data.jsonl", toys.rows(task) if rows is None else rows)
    model = models / toys.TASKS.get(task, "decoder")
    config = FinetuneConfig(
        base=str(model), data=(str(data),), batch_size=7, epochs=1, device="cpu", dtype="float32", **settings
    )
    recipe = finetuning(config, Console(quiet=True))
    # The last batch of an epoch is a smaller one.
    for step in (0, recipe.batches.steps_per_epoch - 1):
        loss, gradients = learn(recipe, step, Group(), 1)
        assert loss > 0
        assert any(bool(gradient.any()) for gradient in gradients.values())
        splits = ((1, 3, 2), (1, 7, 1)) if case in COMPARED else ((1, 3, 1), (1, 1, 4), (1, 2, 2), (2, 1, 1), (3, 2, 1))
        for processes, *split in splits:
            shares = [learn(recipe, step, Share(rank, processes), *split) for rank in range(processes)]
            total = sum(share.item() for share, _ in shares)
            assert total == pytest.approx(loss.item(), rel=1e-5), (processes, split)
            largest = max(gradient.abs().max().item() for gradient in gradients.values())
            for name, gradient in gradients.items():
                mean = torch.stack([own.get(name, torch.zeros_like(gradient)) for _, own in shares]).mean(dim=0)
                torch.testing.assert_close(mean, gradient, rtol=0, atol=1e-6 * max(largest, 1.0), msg=name)
