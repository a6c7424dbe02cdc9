"""From a model's adapter to a GGUF file that llama.cpp adds to the base model (its ``--lora``)."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from anyformer import atomic
from anyformer.adapters.modules import adapter_of, base_state
from anyformer.blocks.adapter import LowRankAdapter
from anyformer.blocks.linear import Linear
from anyformer.checkpoint.gguf.architectures import table, to_gguf
from anyformer.checkpoint.gguf.tensors import package
from anyformer.checkpoint.gguf.write import storable
from anyformer.errors import UserError
from anyformer.model import Transformer


def save_gguf_adapter(model: Transformer, path: Path, name: str) -> None:
    """Write an adapter of a model as a GGUF file, whole or not at all.

    What it is multiplied by is in its matrices: llama.cpp knows one alpha for all layers, and takes 0 for none.

    Raises:
        UserError: llama.cpp can't compute the model, or an adapter of this kind (DoRA, embeddings, other weights); the
            package gguf is missing, or the disk is full.
    """
    gguf = package("Writing GGUF")
    config = model.adapter_configs[name]
    if config.use_dora or not config.is_low_rank_only:
        raise UserError("llama.cpp has no DoRA, and no biases or whole modules in adapters: `merge` it into the model.")
    base = storable(model.config, [])
    architecture, _ = to_gguf(base)
    rows = table(architecture, base, {name.replace(".integers", "") for name in base_state(model)})
    modules = dict(model.named_modules())
    tensors: dict[str, Tensor] = {}
    adapted = {module for module in modules.values() if adapter_of(module, name) is not None}
    for theirs, row in rows.items():
        parts = [modules.get(ours.removesuffix(".weight")) for ours in row.ours]
        found = [adapter_of(part, name) for part in parts if part is not None]
        layers = [part for part in parts if isinstance(part, Linear)]
        if row.alias or len(layers) != len(row.ours) or not any(found):
            continue
        adapted.difference_update(layers)
        a, b = _joined([(layer.weight.shape[0], adapter) for layer, adapter in zip(layers, found, strict=True)])
        # Operations move whole rows, so they move those of B.
        tensors[f"{theirs}.lora_a"] = a
        tensors[f"{theirs}.lora_b"] = row.operation.write(list(b))
    if adapted:
        raise UserError("llama.cpp has no place for an adapter of one of these layers: `merge` it into the model.")
    with atomic.replacing(path, make_parents=True) as temporary:
        writer = gguf.GGUFWriter(temporary, architecture.name)
        try:
            writer.add_string("general.type", "adapter")
            writer.add_string("adapter.type", "lora")
            writer.add_float32("adapter.lora.alpha", 0.0)
            for key, tensor in tensors.items():
                writer.add_tensor(key, tensor.float().contiguous().numpy())
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()
        finally:
            writer.close()


def _joined(parts: Sequence[tuple[int, LowRankAdapter | None]]) -> tuple[Tensor, Sequence[Tensor]]:
    """One A for layers side by side, and the rows of B that belong to each; one without an adapter has rows of 0."""
    own = [adapter for _, adapter in parts if adapter is not None]
    distinct = list({id(adapter.a): adapter.a for adapter in own}.values())
    a = torch.cat([each.detach().cpu() for each in distinct])
    b: list[Tensor] = []
    for outputs, adapter in parts:
        rows = torch.zeros(outputs, len(a))
        if adapter is not None:
            position = next(number for number, each in enumerate(distinct) if each is adapter.a)
            start = sum(len(each) for each in distinct[:position])
            rows[:, start : start + len(adapter.a)] = adapter.scale * adapter.b.detach().cpu()
        b.append(rows)
    return a, b
