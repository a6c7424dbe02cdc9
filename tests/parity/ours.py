"""From a Hugging Face model to ours, by way of a directory on disk, and the measure of what "equal" means."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

import anyformer as af
from anyformer.families import FAMILIES
from anyformer.families.rows import resolve
from anyformer.model import Transformer

TOLERANCE = 1e-5
"""Of the largest magnitude in a tensor: what fp32 arithmetic in another order may cost."""


def ours_of(theirs: PreTrainedModel, edit: Callable[[Path], None] = lambda _: None) -> Transformer:
    """Save the model as Hugging Face does and load it as anyformer does, in eval mode.

    Args:
        theirs: The model.
        edit: Changes the directory in between.
    """
    with tempfile.TemporaryDirectory() as folder:
        theirs.save_pretrained(folder)
        edit(Path(folder))
        model, tokenizer = af.load(folder)
    assert tokenizer is None
    return model.eval()


def assert_close(
    ours: Tensor | None, theirs: Tensor | None, what: str, tolerance: float = TOLERANCE, floor: float = 0.0
) -> None:
    """Raise unless the two agree within `tolerance` of the largest magnitude in them, or of `floor` if that is more."""
    assert ours is not None, f"{what}: ours is missing"
    assert theirs is not None, f"{what}: theirs is missing"
    assert ours.shape == theirs.shape, f"{what}: shape {tuple(ours.shape)} is not {tuple(theirs.shape)}"
    if ours.numel() == 0:
        return
    assert torch.isfinite(ours).all(), f"{what}: not finite"
    difference = (ours - theirs).abs().max().item()
    largest = max(theirs.abs().max().item(), floor)
    assert difference <= tolerance * largest, f"{what}: off by {difference / max(largest, 1e-30):.2e} relative"


def in_their_names(model: Transformer, tensors: Mapping[str, Tensor], model_type: str) -> dict[str, Tensor]:
    """Tensors that go with our weights (gradients, say) under the names and in the layout of Hugging Face's files."""
    family = FAMILIES[model_type]
    found = resolve(family.rows, list(model.state_dict()))
    return {
        name: row.operation.write([tensors[part] for part in row.ours])
        for name, row in found.items()
        if not row.alias and all(part in tensors for part in row.ours)
    }


def gradients(model: Transformer) -> dict[str, Tensor]:
    """The gradient of every weight of ours; zero where nothing flowed."""
    weights = model.named_parameters()
    return {name: torch.zeros_like(weight) if weight.grad is None else weight.grad for name, weight in weights}


def assert_same_gradients(ours: Transformer, theirs: PreTrainedModel) -> None:
    """Raise unless every weight has the same gradient in both models, and no weight was left out on either side."""
    model_type = theirs.config.model_type
    mapped = in_their_names(ours, gradients(ours), model_type)
    prefix = FAMILIES[model_type].prefix
    expected = {id(weight): weight for weight in theirs.parameters() if weight.requires_grad}
    largest = max(weight.grad.abs().max().item() for weight in expected.values() if weight.grad is not None)
    compared: set[str] = set()
    for name, weight in theirs.named_parameters(remove_duplicate=False):
        key = next((key for key in (name, prefix + name) if key in mapped), None)
        if key is None or not weight.requires_grad:
            continue
        wanted = torch.zeros_like(weight) if weight.grad is None else weight.grad
        # Some gradients are zero but for rounding (a bias on all keys moves no softmax): nothing to be relative to.
        assert_close(mapped[key], wanted, f"gradient of {name}", floor=GRADIENT_FLOOR * largest)
        compared.add(key)
        expected.pop(id(weight), None)
    assert not expected, f"{len(expected)} of their weights have no counterpart"
    frozen = {
        key for name, weight in theirs.named_parameters() if not weight.requires_grad for key in (name, prefix + name)
    }
    assert mapped.keys() - compared <= frozen, f"not compared: {sorted(mapped.keys() - compared - frozen)}"


GRADIENT_FLOOR = 1e-2
"""Of the largest gradient in the model."""
