"""The weights of a page: matrices in 8-bit integers with a scale for each row, all other tensors in float32."""

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int8
from torch import Tensor

from anyformer.blocks.embedding import TokenEmbedding
from anyformer.blocks.linear import Linear
from anyformer.blocks.ngrams import NgramEmbedding
from anyformer.errors import UserError
from anyformer.generation.inference import DAMAGED
from anyformer.model import Transformer
from anyformer.quantization import quantized_weights

_LARGEST = 127


@dataclass(frozen=True)
class QuantizedRows:
    """A matrix in integers: ``weight[i, j] = scales[i] * integers[i, j]``."""

    integers: Int8[Tensor, "rows columns"]
    scales: Float[Tensor, " rows"]
    """In float32."""

    def dequantize(self) -> Float[Tensor, "rows columns"]:
        """The matrix in float32."""
        return self.integers.float() * self.scales[:, None]


def quantize_rows(weight: Float[Tensor, "rows columns"]) -> QuantizedRows:
    """The nearest integers from -127 to 127, where the largest number of a row is 127."""
    weight = weight.float()
    scales = weight.abs().amax(dim=1) / _LARGEST
    integers = (weight / scales.where(scales > 0, 1.0)[:, None]).round()
    return QuantizedRows(integers.to(torch.int8), scales)


def page_weights(model: Transformer) -> dict[str, Tensor | QuantizedRows]:
    """All weights by their names in `state_dict`, as a page has them.

    The matrices of linear layers and the tables of tokens and n-grams become `QuantizedRows`. Norms, biases and the
    tables of positions and segments stay in float32, for they are small, and positions are added to every score.

    Raises:
        UserError: a weight is not finite.
    """
    integers = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, Linear)}
    for name, module in model.named_modules():
        if isinstance(module, TokenEmbedding | NgramEmbedding):
            integers.add(f"{name}.table.weight" if isinstance(module, TokenEmbedding) else f"{name}.table")
    tensors = dict(model.named_parameters()) | dict(model.named_buffers())
    for name, matrix in quantized_weights(model):
        tensors = {key: tensor for key, tensor in tensors.items() if not key.startswith(f"{name}.")}
        tensors[name] = matrix.dequantize(torch.float32)
    weights: dict[str, Tensor | QuantizedRows] = {}
    for name, tensor in tensors.items():
        tensor = tensor.detach().float().cpu()
        if not bool(tensor.isfinite().all()):
            raise UserError(DAMAGED)
        weights[name] = quantize_rows(tensor) if name in integers else tensor
    return weights


def pack(weights: Mapping[str, Tensor | QuantizedRows]) -> tuple[list[dict[str, Any]], str]:
    """The weights as a page's script reads them.

    Returns:
        Name and shape of each, in the order of their bytes; and those bytes in base64. Tensors in float32 come first,
        little-endian; then the scales of all matrices, then their integers.
    """
    listed: list[dict[str, Any]] = []
    scales: list[Tensor] = []
    integers: list[Tensor] = []
    floats: list[Tensor] = []
    for name, weight in sorted(weights.items(), key=lambda item: isinstance(item[1], QuantizedRows)):
        if isinstance(weight, QuantizedRows):
            listed.append({"name": name, "shape": list(weight.integers.shape), "int8": True})
            scales.append(weight.scales)
            integers.append(weight.integers)
        else:
            listed.append({"name": name, "shape": list(weight.shape), "int8": False})
            floats.append(weight)
    parts = [
        tensor.contiguous().numpy().astype(kind).tobytes()
        for group, kind in (((*floats, *scales), "<f4"), (integers, "int8"))
        for tensor in group
    ]
    return listed, base64.b64encode(b"".join(parts)).decode("ascii")
