"""From a model with floating-point matrices to one with matrices in integers."""

from collections.abc import Iterator
from typing import get_args

import torch
from torch import Tensor, nn

from anyformer.blocks.embedding import TokenEmbedding
from anyformer.blocks.quantized import (
    ROUNDINGS,
    Quantization,
    QuantizedMatrix,
    fits,
    quantized,
)
from anyformer.errors import UserError, nearest
from anyformer.kernels.quantization import Rounded
from anyformer.model import Transformer


def quantization(name: str) -> Quantization:
    """The kind of this name. Raises UserError for one that is not known."""
    for kind in get_args(Quantization):
        if kind == name:
            return kind
    raise UserError(f"There is no quantization {name!r} ({nearest(name, get_args(Quantization))}).")


def quantizable(model: Transformer) -> dict[str, nn.Linear | nn.Embedding]:
    """The modules whose matrices are worth rounding, by name: linear layers and token tables.

    Tables of positions and segments, norms and biases are small and stay as they are, and so does a matrix whose rows
    are no whole number of groups.
    """
    found: dict[str, nn.Linear | nn.Embedding] = {}
    for name, module in model.named_modules():
        table = isinstance(module, nn.Embedding) and isinstance(_parent(model, name), TokenEmbedding)
        if (isinstance(module, nn.Linear) or (isinstance(module, nn.Embedding) and table)) and fits(
            *module.weight.shape
        ):
            found[name] = module
    return found


def bits_per_module(model: Transformer, kind: Quantization) -> dict[str, int]:
    """The bits of each of them, by name: what touches the vocabulary keeps 8.

    Every text passes through the few rows of its own tokens, so their errors cost the most
    (docs/measurements/quality.md).
    """
    bits = {"int8": 8, "int4": 4}[kind]
    return {
        name: 8 if isinstance(module, nn.Embedding) or name == "head.projection" else bits
        for name, module in quantizable(model).items()
    }


def quantize_weight(name: str, weight: Tensor, bits: int) -> Rounded:
    """Quantize a matrix to 8 or 4 bits. Raises UserError for numbers that are not finite, or too large."""
    try:
        return ROUNDINGS["int8" if bits == 8 else "int4"](weight)
    except ValueError as error:
        raise UserError(f"The weight {name} {error}, so it can't be rounded.") from error


def quantized_parts(model: nn.Module) -> Iterator[tuple[str, QuantizedMatrix]]:
    """The matrices in integers, and their names."""
    return ((name, part) for name, part in model.named_modules() if isinstance(part, QuantizedMatrix))


def bits_of(model: nn.Module) -> int | None:
    """The fewest bits of its matrices; None where all are in floating point."""
    return min((part.bits for _, part in quantized_parts(model)), default=None)


def replace_module(model: Transformer, name: str, weight: Rounded, dtype: torch.dtype) -> None:
    """Replace a linear layer or token table by one with this quantized weight, which computes in `dtype`."""
    parent, attribute = _parent(model, name), name.rpartition(".")[2]
    setattr(parent, attribute, quantized(getattr(parent, attribute), weight, dtype))


def quantize(model: Transformer, kind: str) -> Transformer:
    """Quantize the matrices of a model in place, one at a time.

    Args:
        model: Any transformer.
        kind: "int8" or "int4".

    Returns:
        The same model. It computes in the dtype that it had, and can't be trained any more.

    Raises:
        UserError: an unknown kind, or a matrix with numbers that are not finite.
    """
    modules, dtype = quantizable(model), model.dtype
    for name, bits in bits_per_module(model, quantization(kind)).items():
        replace_module(model, name, quantize_weight(name, modules[name].weight.detach(), bits), dtype)
    return model.requires_grad_(False).eval()


def _parent(model: nn.Module, name: str) -> nn.Module:
    return model.get_submodule(name.rpartition(".")[0])
