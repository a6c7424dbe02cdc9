"""From a Hugging Face model to ours, by way of a directory on disk, and the measure of what "equal" means."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

import anyformer as af
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


def caches_rightly(theirs: Any) -> bool:
    """Whether transformers computes the same with a cache as without one.

    It makes a T5 decoder's cache as deep as the encoder, and with one counts an M2M-100's padding as positions.
    """
    config = theirs.config
    depth = getattr(config, "num_decoder_layers", 0) <= config.num_hidden_layers
    return depth and config.model_type != "m2m_100"


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
