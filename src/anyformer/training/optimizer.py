"""AdamW (Loshchilov & Hutter 2019), with weight decay on matrices only."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

_FUSED = ("cpu", "cuda", "mps")
"""Devices for which torch has one kernel for the whole update."""


def adamw(
    model: nn.Module, learning_rate: float, *, weight_decay: float = 0.1, betas: tuple[float, float] = (0.9, 0.95)
) -> torch.optim.AdamW:
    """The optimiser of a model.

    Matrices (embedding tables among them) are decayed; biases and the weights of norms are not, for pulling those to
    zero keeps nothing from overfitting.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    matrices = [parameter for parameter in parameters if parameter.dim() >= 2]
    vectors = [parameter for parameter in parameters if parameter.dim() < 2]
    groups: list[dict[str, Any]] = [
        {"params": matrices, "weight_decay": weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    fused = all(parameter.device.type in _FUSED for parameter in parameters)
    return torch.optim.AdamW(groups, lr=learning_rate, betas=betas, fused=fused)


def set_learning_rate(optimiser: torch.optim.Optimizer, rate: float) -> None:
    """Use this learning rate from the next step on."""
    for group in optimiser.param_groups:
        group["lr"] = rate
