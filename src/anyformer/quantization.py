"""From a model with floating-point matrices to one with matrices in integers."""

from collections.abc import Iterator
from typing import get_args

import torch
from torch import nn

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


def kinds(model: Transformer, kind: Quantization) -> dict[str, Quantization]:
    """The kind of each of them, by name: what touches the vocabulary keeps 8 bits.

    Every text passes through the few rows of its own words, so their errors cost the most
    (docs/measurements/quality.md).
    """
    head = "head.projection"
    return {
        name: "int8" if isinstance(module, nn.Embedding) or name == head else kind
        for name, module in quantizable(model).items()
    }


def quantized_parts(model: nn.Module) -> Iterator[tuple[str, QuantizedMatrix]]:
    """The matrices in integers, and their names."""
    return ((name, part) for name, part in model.named_modules() if isinstance(part, QuantizedMatrix))


def bits_of(model: nn.Module) -> int | None:
    """The fewest bits of its matrices; None where all are in floating point."""
    return min((part.bits for _, part in quantized_parts(model)), default=None)


def put(model: Transformer, name: str, rounded: Rounded, dtype: torch.dtype) -> None:
    """Let a matrix in integers take the place of the module of this name."""
    parent, last = _parent(model, name), name.rpartition(".")[2]
    setattr(parent, last, quantized(getattr(parent, last), rounded, dtype))


def quantize(model: Transformer, kind: str) -> Transformer:
    """Round the matrices of a model to integers, in place, one at a time.

    Args:
        model: Any transformer.
        kind: "int8" or "int4".

    Returns:
        The same model. It computes in the format that it had, and can't be trained any more.

    Raises:
        UserError: an unknown kind, or a matrix with numbers that are not finite.
    """
    modules, dtype = quantizable(model), model.dtype
    for name, mine in kinds(model, quantization(kind)).items():
        try:
            rounded = ROUNDINGS[mine](modules[name].weight.detach())
        except ValueError as error:
            raise UserError(f"The weight {name} {error}, so it can't be rounded.") from error
        put(model, name, rounded, dtype)
    return model.requires_grad_(False).eval()


def _parent(model: nn.Module, name: str) -> nn.Module:
    return model.get_submodule(name.rpartition(".")[0])
