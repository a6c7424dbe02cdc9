"""From a batch of arrays to the model's arguments."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from anyformer.data.objectives import Batch


def model_inputs(batch: Batch, device: torch.device) -> dict[str, Tensor]:
    """The arguments of `Transformer.forward`, whose names are those of a batch's fields."""
    fields = {field.name: getattr(batch, field.name) for field in dataclasses.fields(batch)}
    return {name: torch.from_numpy(array).to(device) for name, array in fields.items() if array is not None}
