"""Adapters of a model: made new, switched off for a while, merged into the weights, removed."""

import math
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import Parameter

from anyformer.adapters.config import LoraConfig, matches
from anyformer.adapters.modules import Matrices, Target, adapters, is_output_layer, parameters, targets, whole_modules
from anyformer.blocks.experts import Experts
from anyformer.blocks.linear import Embedding, Linear, LowRankAdapter
from anyformer.blocks.quantized import QuantizedMatrix
from anyformer.errors import UserError, nearest
from anyformer.model import Transformer

DEFAULT = "default"


def selected(model: Transformer, config: LoraConfig) -> dict[str, Target]:
    """The layers that a config gives adapters to. Raises UserError where it selects none."""
    layers = targets(model)
    if config.target_modules == "all-linear":
        layers = {n: t for n, t in layers.items() if not t.is_embedding and not is_output_layer(model, t)}
    chosen = {name: target for name, target in layers.items() if config.selects(name)}
    if config.target_parameters:
        every = parameters(model)
        missing = [end for end in config.target_parameters if not any(matches((end,), name) for name in every)]
        if missing:
            ends = sorted({".".join(name.split(".")[-2:]) for name in every})
            hint = nearest(missing[0], ends) if ends else "it has no experts"
            raise UserError(f"No parameter of this model is called {' or '.join(map(repr, missing))} ({hint}).")
        chosen |= {name: target for name, target in every.items() if config.selects_parameter(name)}
    if not chosen:
        ends = sorted({name.rpartition(".")[2] for name, target in layers.items() if not target.is_embedding})
        names = [config.target_modules] if isinstance(config.target_modules, str) else list(config.target_modules)
        hint = nearest(names[0], ends) if names else f"choose from {', '.join(ends)}"
        has_experts = any(isinstance(module, Experts) for module in model.modules())
        note = " Those of experts and routers are chosen by target_parameters." if has_experts else ""
        raise UserError(f"No layer of this model is called {' or '.join(map(repr, names))} ({hint}).{note}")
    return chosen


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
    chosen = selected(model, config)
    model.requires_grad_(False)
    for module, target in chosen.items():
        rank, (outputs, inputs) = config.rank_of(module), target.shape
        a = torch.empty(rank * target.count, inputs, device=model.device)
        b = torch.zeros(outputs, rank * target.count, device=model.device)
        if target.is_embedding:
            a, b = a.zero_(), b.normal_()
        else:
            nn.init.kaiming_uniform_(a, a=math.sqrt(5))
        lengths = target.row_lengths() if config.use_dora and not target.is_embedding else None
        target.attach(name, Matrices(a, b, lengths), config.scale_of(module, rank), config.dropout)
    trained: list[nn.Module | Parameter] = [*make_dense(model, config)]
    adapted = [part for target in chosen.values() for part in target.modules]
    biases = {"none": [], "all": model.modules(), "lora_only": adapted}
    trained += [bias for module in biases[config.bias] if isinstance(bias := getattr(module, "bias", None), Parameter)]
    for part in (*trained, *adapters(model, name)):
        part.requires_grad_(True)
    model.adapter_configs[name] = config
    return model


def make_dense(model: Transformer, config: LoraConfig) -> list[Linear | Embedding]:
    """Put the weights of modules that are trained whole into floating point: integers can't be trained.

    Returns:
        Those modules.
    """
    layers = targets(model) if config.modules_to_save else {}
    whole = [part for name, target in layers.items() if config.saves(name) for part in target.modules]
    for module in whole:
        if isinstance(module.weight, QuantizedMatrix):
            _set_weight(module, module.weight.dequantize(), trained=False)
    return whole


def _set_weight(module: Linear | Embedding, weight: Tensor, *, trained: bool) -> None:
    del module.weight
    module.weight = Parameter(weight, requires_grad=trained)


@contextmanager
def disabled(model: Transformer) -> Generator[None]:
    """Leave all adapters out for a while, as for the reference of DPO.

    Biases and modules that were trained whole stay as they are.
    """
    enabled = [adapter for adapter in adapters(model) if adapter.enabled]
    for adapter in enabled:
        adapter.enabled = False
    try:
        yield
    finally:
        for adapter in enabled:
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
