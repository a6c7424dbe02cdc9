"""Models in float64, Hugging Face's and ours, with nothing in float32: there equal equations agree to 1e-12."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest import mock

import torch
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedModel

from anyformer.model import Transformer
from tests.parity.model_spec import ModelSpec

EQUAL = 1e-12
"""Of the largest magnitude in a tensor: what float64 arithmetic in another order may cost."""


class Float64(TorchFunctionMode):
    """What asks for float32 gets float64: norms and softmax convert to it, whatever the dtype of their model is."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch.Tensor.float:
            return args[0].double()
        given = {name: _wider(value) for name, value in (kwargs or {}).items()}
        return func(*map(_wider, args), **given)


def build_wide(drawn: ModelSpec) -> PreTrainedModel:
    """The model that `drawn.build` makes, in float64, with the frequencies and tables of its positions."""
    with Float64():
        model = drawn.build().double()
    for module in model.modules():
        if hasattr(module, "create_weight"):  # sines and cosines, which are made as a `FloatTensor`
            with mock.patch.object(torch, "FloatTensor", torch.DoubleTensor):
                module.weight.data = module.create_weight()
        if hasattr(module, "scalar_embed_scale"):
            module.embed_scale = torch.tensor(module.scalar_embed_scale, dtype=torch.float64)
    return model


def widened(model: Transformer) -> Transformer:
    """Our model in float64, which makes its tables of positions anew."""
    for module in model.modules():
        vars(module).pop("_table", None)
    return model.double()


def _wider(value: Any) -> Any:
    return torch.float64 if value is torch.float32 else value
