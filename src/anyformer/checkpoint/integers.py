"""Directories of models whose matrices are integers.

Their config.json says so (see `families.integers`). The safetensors hold our own names: `X.integers`, `X.scales` and,
of 4 bits, `X.minima` for a matrix X (see `kernels.quantization`), and all else as it is.
"""

from collections.abc import Mapping
from dataclasses import replace
from functools import reduce
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from anyformer.checkpoint import pooling
from anyformer.checkpoint.weights import Weights, require_float, require_layers
from anyformer.config import ModelConfig
from anyformer.errors import UserError
from anyformer.families.integers import METHOD, marked, method
from anyformer.kernels.quantization import GROUP, Rounded
from anyformer.model import Transformer, skeleton
from anyformer.quantization import bits_of, put, quantizable

_PARTS = ("scales", "minima")


def config_json(raw: Mapping[str, Any], model: Transformer) -> Mapping[str, Any]:
    """The config.json of a model, which says so if it has integers."""
    bits = bits_of(model)
    return raw if bits is None else marked(raw, bits, GROUP)


def described(raw: Mapping[str, Any], directory: Path) -> bool:
    """Whether a config.json speaks of integers. Raises UserError for those of other programs."""
    whose = method(raw)
    if whose not in (None, METHOD):
        raise UserError(
            f"{directory} holds weights that were quantized by {whose!r}, which is not supported: load the model that "
            "they were made of, with `quantize` if they should be integers."
        )
    return whose is not None


def load(
    directory: Path, config: ModelConfig, dtype: torch.dtype | None, device: torch.device | str | None
) -> Transformer:
    """The model in such a directory, just as it was saved.

    Raises:
        UserError: weights that are damaged, unknown, missing or misshapen.
    """
    weights = Weights(directory)
    require_layers(config, weights)
    names = set(weights.names)
    config = replace(_settle_head(config, names), pooling=pooling.read(directory))
    model = skeleton(config)
    others = {name: weights.read(name) for name in names if name.rpartition(".")[2] not in (*_PARTS, "integers")}
    for name, tensor in others.items():
        require_float(directory, name, tensor)
    floats = {tensor.dtype for tensor in others.values()}
    activations = dtype or reduce(torch.promote_types, floats, torch.float16 if floats else torch.float32)
    if dtype is None and floats == {torch.bfloat16}:
        activations = torch.bfloat16
    modules = quantizable(model)
    for name in sorted(names):
        module, _, part = name.rpartition(".")
        if part == "integers" and module in modules:
            matrix = _matrix(weights, module, modules[module].weight.shape)
            put(model, module, matrix.to(device), activations)
    wanted = {name: tensor.shape for name, tensor in model.state_dict().items()}
    for name in sorted(wanted.keys() ^ names):
        raise UserError(f"{directory}: the weight {name} is {'missing' if name in wanted else 'unknown'}.")
    for name, tensor in others.items():
        if tensor.shape != wanted[name]:
            raise _misshapen(directory, name, tensor)
        others[name] = tensor.to(device=device, dtype=activations)
    model.load_state_dict(others, assign=True, strict=False)
    return model.requires_grad_(False)


def _matrix(weights: Weights, name: str, shape: torch.Size) -> Rounded:
    rows, columns = shape
    integers = weights.read(f"{name}.integers")
    missing = [part for part in _PARTS if f"{name}.{part}" not in weights]
    if "scales" in missing:
        raise UserError(f"{weights.directory}: the weight {name}.scales is missing.")
    scales = weights.read(f"{name}.scales")
    minima = None if "minima" in missing else weights.read(f"{name}.minima")
    wide = minima is None
    _check(weights, f"{name}.integers", integers, (rows, columns if wide else columns // 2), _FORMATS[wide])
    for part, tensor in (("scales", scales), ("minima", minima)):
        if tensor is not None:
            _check(weights, f"{name}.{part}", tensor, (rows, columns // GROUP), torch.float16)
    return Rounded(integers, scales, minima)


_FORMATS = {True: torch.int8, False: torch.uint8}


def _check(weights: Weights, name: str, tensor: Tensor, shape: tuple[int, int], dtype: torch.dtype) -> None:
    if tuple(tensor.shape) != shape or tensor.dtype != dtype:
        raise _misshapen(weights.directory, name, tensor)


def _misshapen(directory: Path, name: str, tensor: Tensor) -> UserError:
    kind = str(tensor.dtype).removeprefix("torch.")
    return UserError(f"{directory}: the weight {name}, {kind} {list(tensor.shape)}, does not fit this config.json.")


def _settle_head(config: ModelConfig, names: set[str]) -> ModelConfig:
    """The file has the last word on whether there is a head, and a pooler, of the model's own."""

    def has(part: str) -> bool:
        return any(name.startswith(part) for name in names)

    if config.head.kind == "language_model":
        config = replace(config, embedding=replace(config.embedding, tied=not has("head.projection.")))
    if config.head.kind == "none" and not has("pooler."):
        config = replace(config, head=replace(config.head, pooler=None))
    return config
