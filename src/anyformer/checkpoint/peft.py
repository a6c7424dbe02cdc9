"""Adapters in PEFT's format: adapter_config.json and adapter_model.safetensors, in and out."""

import json
import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from torch import Tensor

from anyformer import limits
from anyformer.adapters.attach import DEFAULT
from anyformer.adapters.config import LoraConfig
from anyformer.adapters.modules import Target, attach, family_of, targets
from anyformer.blocks.adapter import LowRankAdapter
from anyformer.checkpoint.tensors import read_tensors, write_adapter
from anyformer.errors import UserError
from anyformer.model import Transformer

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."
_SUFFIXES = {
    ".lora_A.weight": "a",
    ".lora_B.weight": "b",
    ".lora_embedding_A": "a",
    ".lora_embedding_B": "b",
    ".lora_magnitude_vector": "magnitude",
}
_FIELDS = {
    "r": "rank",
    "lora_alpha": "alpha",
    "lora_dropout": "dropout",
    **{
        name: name
        for name in (
            *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "rank_pattern"),
            *("alpha_pattern", "use_rslora", "use_dora", "bias", "modules_to_save"),
        )
    },
}
"""PEFT's names and ours."""
_WITHOUT_EFFECT = {
    *("peft_type", "task_type", "auto_mapping", "base_model_name_or_path", "revision", "inference_mode"),
    *("peft_version", "init_lora_weights", "fan_in_fan_out", "megatron_core", "qalora_group_size", "runtime_config"),
    *("loftq_config", "eva_config", "corda_config", "lora_ga_config", "ensure_weight_tying"),
}
"""Fields that say how it was made, or where: what it computes is the same."""


@dataclass(frozen=True)
class PeftAdapter:
    """An adapter directory that was read."""

    config: LoraConfig
    base: str | None
    """The model that it was trained on, as PEFT noted it."""
    tensors: Mapping[str, Tensor]
    """By the names of Hugging Face's class."""


def read(directory: Path) -> PeftAdapter:
    """Read an adapter. Raises UserError where it is damaged, or of a kind that is not supported."""
    raw = limits.read_object(directory / CONFIG)
    kind = raw.get("peft_type")
    if kind != "LORA":
        raise UserError(
            f"{directory / CONFIG}: the adapter type {kind!r} is not supported: only LORA is, with its DoRA."
        )
    for name, value in raw.items():
        if name not in _FIELDS and name not in _WITHOUT_EFFECT and value not in (None, False, [], {}):
            raise UserError(f"{directory / CONFIG}: {name} = {json.dumps(value)[:80]} is not supported.")
    given = {ours: raw[theirs] for theirs, ours in _FIELDS.items() if raw.get(theirs) is not None}
    try:
        config = LoraConfig(**_checked(given))
    except (TypeError, ValueError) as error:
        raise UserError(f"{directory / CONFIG} has a field that is misshapen: {error}.") from error
    path = directory / WEIGHTS
    tensors = read_tensors(path)
    unknown = next((name for name in tensors if not name.startswith(_PREFIX)), None)
    if unknown is not None:
        raise UserError(f"{path}: the weight {unknown} should begin with {_PREFIX}.")
    base = raw.get("base_model_name_or_path")
    named = {name.removeprefix(_PREFIX): tensor for name, tensor in tensors.items()}
    return PeftAdapter(config, base if isinstance(base, str) else None, named)


def _checked(given: dict[str, Any]) -> dict[str, Any]:
    """The fields, each of the type that it should have. Raises TypeError."""
    kinds: dict[str, Any] = {
        "rank": int,
        "alpha": (int, float),
        "dropout": (int, float),
        "use_rslora": bool,
        "use_dora": bool,
        "target_modules": (str, list),
        "exclude_modules": (str, list),
        "layers_pattern": (str, list),
        "layers_to_transform": (int, list),
        "rank_pattern": dict,
        "alpha_pattern": dict,
        "bias": str,
        "modules_to_save": list,
    }
    for name, value in given.items():
        if not isinstance(value, kinds[name]) or (isinstance(value, bool) and kinds[name] is not bool):
            raise TypeError(f"{name} is {json.dumps(value)[:80]}")
    for name in ("layers_to_transform", "layers_pattern"):
        if name in given and not isinstance(given[name], list):
            given[name] = [given[name]]
    return given


def load(model: Transformer, directory: Path, name: str = DEFAULT, weight: float = 1.0) -> LoraConfig:
    """Give a model the adapter of a directory.

    Args:
        model: The base, or another fine-tuned form of it.
        directory: Has adapter_config.json and adapter_model.safetensors.
        name: Tells it from other adapters.
        weight: The adapter counts so many times.

    Returns:
        What it was made with.

    Raises:
        UserError: it is damaged, made for another model, or has a field that is not supported.
    """
    adapter = read(directory)
    config, known = adapter.config, targets(model)
    if config.use_dora and weight != 1.0:
        raise UserError(f"{directory} is a DoRA adapter, which can't be weighted: give it without a weight.")
    parts, others = _grouped(adapter.tensors)
    for module, found in parts.items():
        target = known.get(module)
        if target is None:
            raise UserError(
                f"{directory}: this model has no layer {module}: the adapter was made for another model{_of(adapter)}."
            )
        if not {"a", "b"} <= found.keys():
            raise UserError(f"{directory}: the adapter of {module} has only one of its two matrices.")
        _check_shapes(directory, adapter, module, target, found)
        rank = found["a"].shape[0]
        attach(
            target,
            name,
            found["a"].to(model.device),
            found["b"].to(model.device),
            weight * config.scale_of(module, rank),
            dropout=config.dropout,
            magnitude=None if "magnitude" not in found else found["magnitude"].to(model.device),
        )
    _replace(model, directory, others)
    return config


def _grouped(tensors: Mapping[str, Tensor]) -> tuple[dict[str, dict[str, Tensor]], dict[str, Tensor]]:
    """The matrices of each layer's adapter; and other weights, by name."""
    parts: defaultdict[str, dict[str, Tensor]] = defaultdict(dict)
    others: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        if ".original_module." in key:
            continue  # what PEFT keeps of a module that is trained whole, beside the trained one
        suffix = next((each for each in _SUFFIXES if key.endswith(each)), None)
        if suffix is None:
            others[re.sub(r"\.(base_layer|modules_to_save(\.default)?)\.", ".", key)] = tensor
        else:
            parts[key.removesuffix(suffix)][_SUFFIXES[suffix]] = tensor
    return parts, others


def _check_shapes(
    directory: Path, adapter: PeftAdapter, module: str, target: Target, found: Mapping[str, Tensor]
) -> None:
    rows, columns = sum(part.weight.shape[0] for part in target.modules), target.modules[0].weight.shape[1]
    outputs, inputs = (columns, rows) if target.is_embedding else (rows, columns)
    rank = adapter.config.rank_of(module)
    wanted = {"a": (rank, inputs), "b": (outputs, rank), "magnitude": (outputs,)}
    for part, tensor in found.items():
        if tensor.shape != wanted[part] or not tensor.is_floating_point():
            shape = f"shape {list(tensor.shape)}, and {list(wanted[part])} would fit"
            raise UserError(
                f"{directory}: the adapter of {module} does not fit this model{_of(adapter)}: {part} has {shape}."
            )
    if adapter.config.use_dora and "magnitude" not in found and not target.is_embedding:
        raise UserError(f"{directory}: the DoRA adapter of {module} has no lora_magnitude_vector.")


def _of(adapter: PeftAdapter) -> str:
    return "" if adapter.base is None else f" ({adapter.base})"


def _replace(model: Transformer, directory: Path, others: Mapping[str, Tensor]) -> None:
    """Put biases and modules that were trained whole in the place of the model's."""
    if not others:
        return
    family, own = family_of(model), dict(model.named_parameters())
    table = family.table({name for name in own if ".adapters." not in name})
    prefix = family.prefix if model.config.head.kind == "none" else ""
    for name, tensor in others.items():
        row = table.get(name) or table.get(prefix + name)
        if row is None:
            raise UserError(f"{directory}: this model has no weight {name}: the adapter was made for another model.")
        parts = row.operation.read(tensor, len(row.ours))
        for ours, part in zip(row.ours, parts, strict=True):
            if part.shape != own[ours].shape:
                raise UserError(
                    f"{directory}: {name} has shape {list(tensor.shape)}, which does not fit {list(own[ours].shape)}."
                )
            own[ours].data.copy_(part)


def save(model: Transformer, directory: Path, config: LoraConfig, name: str = DEFAULT, base: str | None = None) -> None:
    """Write an adapter of a model.

    Args:
        model: Has it.
        directory: Where; made if there is none.
        config: What it was made with.
        name: That of the adapter.
        base: The model that it was trained on, for people and for PEFT.

    Raises:
        UserError: the model has no such adapter, or the files can't be written.
    """
    tensors: dict[str, Tensor] = {}
    fused = False
    for module, target in targets(model).items():
        found = [
            cast("LowRankAdapter", part.adapters[name])
            for part in target.modules
            if part.adapters is not None and name in part.adapters
        ]
        if not found:
            continue
        fused = fused or target.fan_in_fan_out
        key = f"{_PREFIX}{module}"
        b = found[0].b if target.is_embedding else target.join([each.b.detach() for each in found])
        pair = {".lora_embedding_A": found[0].a, ".lora_embedding_B": b}
        pair = pair if target.is_embedding else {".lora_A.weight": found[0].a, ".lora_B.weight": b}
        tensors |= {key + suffix: tensor for suffix, tensor in pair.items()}
        lengths = [each.magnitude.detach()[:, None] for each in found if each.magnitude is not None]
        if lengths:
            tensors[f"{key}.lora_magnitude_vector"] = target.join(lengths).flatten()
    if not tensors:
        raise UserError(f"The model has no adapter {name!r} to save.")
    tensors |= _trained_whole(model, config)
    raw = _to_json(model, config, base, fan_in_fan_out=fused)
    write_adapter(directory, CONFIG, raw, WEIGHTS, tensors)


def _trained_whole(model: Transformer, config: LoraConfig) -> dict[str, Tensor]:
    """The biases and modules that are saved beside the adapter, by their keys."""
    own = {name: each for name, each in model.named_parameters() if ".adapters." not in name}
    family = family_of(model)
    prefix = family.prefix if model.config.head.kind == "none" else ""
    found: dict[str, Tensor] = {}
    adapted = {name for name, target in targets(model).items() if target.modules[0].adapters is not None}
    for theirs, row in family.table(own).items():
        name = theirs.removeprefix(prefix)
        module = name.rpartition(".")[0]
        whole = config.saves(module)
        bias = name.endswith(".bias") and (config.bias == "all" or (config.bias == "lora_only" and module in adapted))
        if not row.alias and (whole or bias):
            layer = f"{module}.base_layer" if bias and module in adapted else module
            key = f"{_PREFIX}{layer}.{name.rpartition('.')[2]}"
            found[key] = row.operation.write([own[ours].detach() for ours in row.ours])
    return found


_TASKS = {"language_model": "CAUSAL_LM", "classification": "SEQ_CLS", "token_classification": "TOKEN_CLS"}


def _to_json(model: Transformer, config: LoraConfig, base: str | None, *, fan_in_fan_out: bool) -> dict[str, Any]:
    fields: dict[str, Any] = {theirs: getattr(config, ours) for theirs, ours in _FIELDS.items()}
    fields["lora_alpha"] = config.alpha_of("")
    task = _TASKS.get(model.config.head.kind, "FEATURE_EXTRACTION")
    if task == "CAUSAL_LM" and not model.config.is_decoder_only:
        task = "SEQ_2_SEQ_LM" if model.config.is_encoder_decoder else None
    plain = {name: list(value) if isinstance(value, tuple) else value for name, value in fields.items()}
    # PEFT takes "all" for None or a list, not for an empty one.
    emptied = {name: None if value == [] else value for name, value in plain.items()}
    return {
        **emptied,
        "peft_type": "LORA",
        "task_type": task,
        "base_model_name_or_path": base,
        "fan_in_fan_out": fan_in_fan_out,
        "inference_mode": True,
        "init_lora_weights": True,
    }
