"""A directory whose weights don't fit its config is refused, and the message names the weight."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion

from anyformer.errors import UserError
from tests.parity import hf_models
from tests.parity.conversion import ours_of
from tests.parity.model_spec import ModelSpec


def _edit(change: Callable[[dict[str, Tensor]], None]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        path = folder / "model.safetensors"
        weights = load_file(path)
        change(weights)
        save_file(weights, path, metadata={"format": "pt"})

    return edit


@pytest.mark.parametrize("architecture", hf_models.ARCHITECTURES)
@settings(max_examples=3)
@given(data=st.data())
def test_unknown_weight(architecture: str, data: st.DataObject) -> None:
    drawn = data.draw(hf_models.models(architecture))
    edit = _edit(lambda weights: weights.update({"model.layers.0.surprise.weight": torch.ones(2)}))
    with pytest.raises(UserError, match=r"model\.layers\.0\.surprise\.weight"):
        ours_of(drawn.build(), edit)


@pytest.mark.parametrize("architecture", hf_models.ARCHITECTURES)
@settings(max_examples=6)
@given(data=st.data())
def test_missing_weight(architecture: str, data: st.DataObject) -> None:
    drawn = data.draw(hf_models.models(architecture))
    theirs = drawn.build()
    name = data.draw(st.sampled_from(_needed(drawn, theirs)))
    with pytest.raises(UserError) as caught:
        ours_of(theirs, _edit(lambda weights: weights.pop(_on_disk(weights, name))))
    assert name in str(caught.value)


@pytest.mark.parametrize("architecture", hf_models.ARCHITECTURES)
@settings(max_examples=6)
@given(data=st.data())
def test_misshapen_weight(architecture: str, data: st.DataObject) -> None:
    drawn = data.draw(hf_models.models(architecture))
    theirs = drawn.build()
    name = data.draw(st.sampled_from(_needed(drawn, theirs)))

    def grow(weights: dict[str, Tensor]) -> None:
        found = _on_disk(weights, name)
        weights[found] = torch.cat((weights[found], weights[found][:1]))

    with pytest.raises(UserError) as caught:
        ours_of(theirs, _edit(grow))
    assert name in str(caught.value)


def _needed(drawn: ModelSpec, theirs: PreTrainedModel) -> list[str]:
    """Weights that a file must have: not computed sinusoids, nor an untied T5 head (without one it is tied)."""
    stored = revert_weight_conversion(theirs, dict(theirs.named_parameters()))
    return [
        name
        for name, weight in stored.items()
        if (weight.requires_grad or drawn.family not in ("marian", "pegasus"))
        and not (drawn.untie_head and "lm_head" in name)
    ]


def _on_disk(weights: dict[str, Tensor], name: str) -> str:
    assert name in weights, f"{name} is not in the file: {sorted(weights)}"
    return name
