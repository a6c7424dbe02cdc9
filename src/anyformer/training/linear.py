"""Which class the linear layers of a model have while it is trained."""

from __future__ import annotations

import torch
from torch import nn

from anyformer.blocks.block import TransformerBlock
from anyformer.blocks.head import LanguageModelHead
from anyformer.training.int8 import Int8Linear
from anyformer.training.precision import Precision
from anyformer.training.tiled import TiledLinear


def use_fastest(model: nn.Module, precision: Precision) -> None:
    """Let the linear layers inside the blocks learn in the way that is fastest; the head's has its own (see `blocks`).

    They stay what they are: their parameters, names and state are the same.
    """
    if precision.int8:
        _become(model, Int8Linear)
        for part in model.modules():
            if isinstance(part, LanguageModelHead):
                part.rounds = True
    elif precision.dtype == torch.bfloat16:
        _become(model, TiledLinear)


def _become(model: nn.Module, kind: type[nn.Linear]) -> None:
    for block in model.modules():
        if isinstance(block, TransformerBlock):
            for part in block.modules():
                if type(part) is nn.Linear:
                    part.__class__ = kind
