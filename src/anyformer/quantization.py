"""From a model with weights in floating point to one with quantized weights."""

from collections.abc import Iterator
from typing import cast, get_args

import torch
from torch import Tensor, nn

from anyformer.blocks.embedding import TokenEmbedding
from anyformer.blocks.experts import Experts
from anyformer.blocks.linear import Embedding, GroupedLinear, Linear, replace_weight
from anyformer.blocks.quantized import QuantizedMatrix
from anyformer.errors import UserError, nearest, quote
from anyformer.kernels.packed_weight import BLOCK_ROWS
from anyformer.kernels.quantization import QUANTIZERS, Quantization, QuantizedWeight, can_quantize
from anyformer.model import Transformer


def quantization(name: str) -> Quantization:
    """The kind of this name. Raises UserError where there is none."""
    for kind in get_args(Quantization):
        if kind == name:
            return kind
    raise UserError(f"There is no quantization {quote(name)} ({nearest(name, get_args(Quantization))}).")


def quantizable(model: Transformer) -> dict[str, Linear | Embedding]:
    """The modules whose weights are worth quantizing, by name: linear layers and token embeddings.

    Embeddings of positions and segments, norms and biases are small and stay as they are, and so does a matrix whose
    rows are no whole number of groups, experts whose rows are no whole number of packed blocks, and
    routers, whose choice rounding would change.
    """
    modules = dict(model.named_modules())
    return {
        name: module
        for name, module in modules.items()
        if (
            isinstance(module, Linear)
            or (isinstance(module, Embedding) and isinstance(modules[name.rpartition(".")[0]], TokenEmbedding))
        )
        and can_quantize(*module.weight.shape)
        and not (isinstance(module, GroupedLinear) and module.out_features // module.groups % BLOCK_ROWS)
        and not (name.endswith(".router") and isinstance(modules[name.rpartition(".")[0]], Experts))
    }


def bits_per_module(model: Transformer, kind: Quantization) -> dict[str, int]:
    """The bits of each of them, by name: the embedding and the head keep 8.

    Every sequence passes through the few rows of its own tokens, so their errors cost the most
    (docs/measurements/quality.md).
    """
    bits = {"int8": 8, "int4": 4}[kind]
    return {
        name: 8 if isinstance(module, Embedding) or name == "head.projection" else bits
        for name, module in quantizable(model).items()
    }


def quantize_weight(name: str, weight: Tensor, bits: int) -> QuantizedWeight:
    """Quantize a matrix to 8 or 4 bits. Raises UserError for numbers that are not finite, or too large."""
    try:
        return QUANTIZERS["int8" if bits == 8 else "int4"](weight)
    except ValueError as error:
        raise UserError(f"The weight {name} {error}, so it can't be quantized.") from error


def quantized_weights(model: nn.Module) -> Iterator[tuple[str, QuantizedMatrix]]:
    """The quantized weights of a model, by name."""
    return ((name, part) for name, part in model.named_modules() if isinstance(part, QuantizedMatrix))


def parameter_count(model: nn.Module) -> int:
    """The number of weights of a model, each once; of a quantized matrix those that its integers stand for."""
    floating = sum(parameter.numel() for parameter in model.parameters())
    return floating + sum(weight.shape.numel() for _, weight in quantized_weights(model))


def bits_of(model: nn.Module) -> int | None:
    """The fewest bits of its weights; None where all are in floating point."""
    return min((weight.bits for _, weight in quantized_weights(model)), default=None)


def set_weight(model: Transformer, name: str, weight: QuantizedWeight, dtype: torch.dtype) -> None:
    """Replace the weight of the module of this name by a quantized one."""
    replace_weight(model.get_submodule(name), QuantizedMatrix(weight, dtype))


def quantize(model: Transformer, kind: str) -> Transformer:
    """Quantize the weights of a model, in place, one at a time.

    Args:
        kind: "int8" or "int4".

    Returns:
        The same model. Its activations keep their dtype, and it can't be trained any more.

    Raises:
        UserError: no model, an unknown kind, or a weight with numbers that are not finite.
    """
    if not isinstance(cast("object", model), Transformer):
        raise UserError(
            f"`quantize` takes a model, not a {type(model).__name__}: load it first, by load(DIR, quantize='int8')."
        )
    modules, dtype = quantizable(model), model.dtype
    for name, bits in bits_per_module(model, quantization(kind)).items():
        set_weight(model, name, quantize_weight(name, modules[name].weight.detach(), bits), dtype)
    return model.requires_grad_(False).eval()
