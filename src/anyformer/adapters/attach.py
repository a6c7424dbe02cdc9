"""Adapters of a model: made new, switched off for a while, merged into the weights, removed."""

import math
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor, nn

from anyformer.adapters.config import LoraConfig
from anyformer.adapters.modules import (
    Matrices,
    Target,
    adapters,
    attach,
    is_output_layer,
    row_lengths,
    targets,
    whole_modules,
)
from anyformer.blocks.linear import Embedding, Linear, LowRankAdapter
from anyformer.blocks.quantized import QuantizedMatrix
from anyformer.errors import UserError, nearest
from anyformer.model import Transformer

DEFAULT = "default"


def selected(model: Transformer, config: LoraConfig) -> dict[str, Target]:
    """The layers that a config gives adapters to. Raises UserError where it selects none."""
    known = targets(model)
    if config.target_modules == "all-linear":
        known = {n: t for n, t in known.items() if not t.is_embedding and not is_output_layer(model, t)}
    found = {name: target for name, target in known.items() if config.selects(name)}
    if not found:
        ends = sorted({name.rpartition(".")[2] for name, target in known.items() if not target.is_embedding})
        asked = [config.target_modules] if isinstance(config.target_modules, str) else list(config.target_modules)
        hint = nearest(asked[0], ends) if asked else f"choose from {', '.join(ends)}"
        raise UserError(f"No layer of this model is called {' or '.join(map(repr, asked))} ({hint}).")
    return found


def add_adapter(model: Transformer, config: LoraConfig, name: str = DEFAULT) -> Transformer:
    """Give a model an adapter that changes nothing yet, and leave only it to be trained.

    A is drawn as `torch.nn.Linear` draws its weight, and B is zero; for an embedding the other way round, as in PEFT.
    A classifier, and weights that a model came without, are trained whole, as if `modules_to_save` named them.

    Args:
        model: Any transformer, quantized ones as well.
        config: The layers that get one, and what it's made of.
        name: Tells it from other adapters.

    Returns:
        The same model.

    Raises:
        UserError: the config selects no layer, or there is an adapter of this name.
    """
    if name in model.adapter_configs:
        raise UserError(f"The model has an adapter {name!r} already: merge it, or choose another name.")
    whole = dict.fromkeys((*config.modules_to_save, *whole_modules(model)))
    config = replace(config, modules_to_save=tuple(whole))
    found = selected(model, config)
    model.requires_grad_(False)
    for module, target in found.items():
        rank, (outputs, inputs) = config.rank_of(module), target.shape
        a, b = torch.empty(rank, inputs, device=model.device), torch.zeros(outputs, rank, device=model.device)
        if target.is_embedding:
            a, b = a.zero_(), b.normal_()
        else:
            nn.init.kaiming_uniform_(a, a=math.sqrt(5))
        lengths = row_lengths(target, b @ a) if config.use_dora and not target.is_embedding else None
        attach(target, name, Matrices(a, b, lengths), config.scale_of(module, rank), config.dropout)
    _train_biases(model, config, found)
    make_dense(model, config)
    for module, target in targets(model).items():
        if config.saves(module):
            for part in target.modules:
                part.requires_grad_(True)
    for adapter in adapters(model, name):
        adapter.requires_grad_(True)
    model.adapter_configs[name] = config
    return model


def _train_biases(model: Transformer, config: LoraConfig, found: dict[str, Target]) -> None:
    if config.bias == "all":
        for path, parameter in model.named_parameters():
            parameter.requires_grad_(path.endswith(".bias"))
    elif config.bias == "lora_only":
        for target in found.values():
            for module in target.modules:
                bias: nn.Parameter | None = getattr(module, "bias", None)
                if bias is not None:
                    bias.requires_grad_(True)


def make_dense(model: Transformer, config: LoraConfig) -> None:
    """Put the weights of modules that are trained whole into floating point: integers can't be trained."""
    for name, target in targets(model).items():
        for module in target.modules if config.saves(name) else ():
            weight = module.weight
            if isinstance(weight, QuantizedMatrix):
                _set_weight(module, weight.dequantize(), trained=False)


def _set_weight(module: Linear | Embedding, weight: Tensor, *, trained: bool) -> None:
    del module.weight
    module.weight = nn.Parameter(weight, requires_grad=trained)


@contextmanager
def disabled(model: Transformer) -> Generator[None]:
    """Leave all adapters out for a while, as for the reference of DPO.

    Biases and modules that were trained whole stay as they are.
    """
    found = [adapter for adapter in adapters(model) if adapter.enabled]
    for adapter in found:
        adapter.enabled = False
    try:
        yield
    finally:
        for adapter in found:
            adapter.enabled = True


@torch.no_grad()
def merge(model: Transformer) -> Transformer:
    """Add all adapters to the weights, in place, and remove them.

    A quantized weight with an adapter becomes one in floating point, in the dtype of the activations: rounding it to
    integers again is up to the caller, who can measure what that costs.

    Returns:
        The same model.

    Raises:
        UserError: an adapter of the token embedding, where the head is tied to it: it would act on both.
    """
    if model.config.embedding.tied and model.token_embedding.table.adapters is not None:
        raise UserError("The head is tied to the token embedding, whose adapter can't be merged for one of them alone.")
    for module in model.modules():
        if not isinstance(module, Linear | Embedding) or module.adapters is None:
            continue
        weight = module.weight
        dense = weight.dequantize() if isinstance(weight, QuantizedMatrix) else weight.detach()
        for adapter in module.adapters.values():
            assert isinstance(adapter, LowRankAdapter)
            dense = adapter.merged(dense) if isinstance(module, Linear) else adapter.merged(dense.t()).t().contiguous()
        trained = not isinstance(weight, QuantizedMatrix) and weight.requires_grad
        _set_weight(module, dense, trained=trained)
    remove(model)
    return model


def remove(model: Transformer) -> None:
    """Remove all adapters; the weights are as they were before."""
    for module in model.modules():
        if isinstance(module, Linear | Embedding):
            module.adapters = None
    model.adapter_configs.clear()
