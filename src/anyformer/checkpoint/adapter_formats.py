"""Formats of adapters, in and out.

PEFT's has adapter_config.json and adapter_model.safetensors. mlx-lm's has an adapter_config.json of another schema, and
adapters.safetensors: its matrices are ours transposed, and its scale is applied as it is (alpha is scale times rank).
"""

import re
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from anyformer import limits
from anyformer.adapters.config import LoraConfig
from anyformer.adapters.modules import (
    Matrices,
    Target,
    base_parameters,
    family_of,
    is_output_layer,
    parameters,
    prefix_of,
    targets,
    wrapped_names,
)
from anyformer.checkpoint.sources import read_tensors
from anyformer.errors import UserError, cut, located, quote
from anyformer.families.base import CLASSIFIERS
from anyformer.model import Transformer
from anyformer.schema import make

CONFIG, PEFT_WEIGHTS, MLX_WEIGHTS = "adapter_config.json", "adapter_model.safetensors", "adapters.safetensors"
_PREFIX = "base_model.model."
_SUFFIXES = {
    ".lora_A.weight": "a",
    ".lora_B.weight": "b",
    ".lora_embedding_A": "a",
    ".lora_embedding_B": "b",
    ".lora_magnitude_vector": "magnitude",
}
_SAME = (
    *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "rank_pattern", "alpha_pattern"),
    *("use_rslora", "use_dora", "bias", "modules_to_save", "target_parameters"),
)
_FIELDS = {"r": "rank", "lora_alpha": "alpha", "lora_dropout": "dropout", **{name: name for name in _SAME}}
"""PEFT's names and ours."""
_WITHOUT_EFFECT = {
    *("peft_type", "task_type", "auto_mapping", "base_model_name_or_path", "revision", "inference_mode"),
    *("peft_version", "init_lora_weights", "fan_in_fan_out", "megatron_core", "qalora_group_size", "runtime_config"),
    *("loftq_config", "eva_config", "corda_config", "lora_ga_config", "ensure_weight_tying"),
}
"""Fields that say how it was made, or where: what it computes is the same."""
FEATURE_EXTRACTION, SEQ2SEQ = "FEATURE_EXTRACTION", "SEQ_2_SEQ_LM"
"""PEFT's tasks of a model without a head, and of an encoder-decoder."""
_TASKS = {"language_model": "CAUSAL_LM", "classification": "SEQ_CLS", "token_classification": "TOKEN_CLS"}

Parts = Mapping[str, Tensor]
"""Tensors "a" [rank, inputs], "b" [outputs, rank] and "magnitude" [outputs] of a layer, as far as they are there."""


@dataclass(frozen=True)
class StoredAdapter:
    """An adapter as it was read; loading checks that it is complete and fits the model."""

    config: LoraConfig
    layers: Mapping[str, Parts]
    """By the name of the layer in Hugging Face's class."""
    others: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])
    """Biases, and weights of modules that were trained whole, by Hugging Face's names."""
    base: str | None = None
    """The model that it was trained on."""


def by_layer(
    tensors: Mapping[str, Tensor], suffixes: Mapping[str, str]
) -> tuple[dict[str, dict[str, Tensor]], dict[str, Tensor]]:
    """The parts of each layer's adapter, whose names end so: layer -> part -> tensor; and all other tensors."""
    layers: defaultdict[str, dict[str, Tensor]] = defaultdict(dict)
    others: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        suffix = next((each for each in suffixes if key.endswith(each)), None)
        if suffix is None:
            others[key] = tensor
        else:
            layers[key.removesuffix(suffix)][suffixes[suffix]] = tensor
    return layers, others


def adapted_layers(model: Transformer, name: str) -> dict[str, tuple[Target, Matrices]]:
    """The layers that have an adapter of this name, and its matrices."""
    layers = {module: (target, target.matrices(name)) for module, target in targets(model).items()}
    stacks = {module: (target, target.matrices(name)) for module, target in parameters(model).items()}
    names = wrapped_names(module for module, (_, matrices) in stacks.items() if matrices is not None)
    layers |= {names[module]: pair for module, pair in stacks.items() if module in names}
    return {module: (target, matrices) for module, (target, matrices) in layers.items() if matrices is not None}


def read_peft(directory: Path) -> StoredAdapter:
    """Read an adapter in PEFT's format. Raises UserError where it is damaged, or of a kind that is not supported."""
    path, weights = directory / CONFIG, directory / PEFT_WEIGHTS
    raw = limits.read_object(path)
    kind = raw.get("peft_type")
    if kind != "LORA":
        raise UserError(f"{path}: the adapter type {quote(kind)} is not supported: only LORA is, DoRA included.")
    for name, value in raw.items():
        if name not in _FIELDS and name not in _WITHOUT_EFFECT and value not in (None, False, [], {}):
            raise UserError(f"{path}: {cut(name)} = {quote(value)} is not supported.")
    with located(path):
        config = make(LoraConfig, {o: raw[theirs] for theirs, o in _FIELDS.items() if raw.get(theirs) is not None})
    tensors = read_tensors(weights)
    for key in tensors:
        if not key.startswith(_PREFIX):
            raise UserError(f"{weights}: the weight {quote(key)} should begin with {_PREFIX}.")
    layers, others = by_layer({key.removeprefix(_PREFIX): tensor for key, tensor in tensors.items()}, _SUFFIXES)
    whole = {
        re.sub(r"\.(base_layer|modules_to_save(\.default)?)\.", ".", name): tensor
        for name, tensor in others.items()
        if ".original_module." not in name  # PEFT keeps it beside a module that is trained whole
    }
    base = raw.get("base_model_name_or_path")
    return StoredAdapter(config, layers, whole, base if isinstance(base, str) else None)


def peft_files(
    model: Transformer, config: LoraConfig, name: str, base: str | None
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The config file and the tensors of an adapter of a model; `base` is the model that PEFT looks up."""
    tensors: dict[str, Tensor] = {}
    adapted = adapted_layers(model, name)
    for module, (target, matrices) in adapted.items():
        ends = ("embedding_A", "embedding_B") if target.is_embedding else ("A.weight", "B.weight")
        parts = zip((*ends, "magnitude_vector"), (matrices.a, matrices.b, matrices.magnitude), strict=True)
        tensors |= {f"{_PREFIX}{module}.lora_{end}": part for end, part in parts if part is not None}
    own, prefix = base_parameters(model), prefix_of(model)
    for theirs, row in family_of(model).table(model.config, own).items():
        module, _, part = theirs.removeprefix(prefix).rpartition(".")
        bias = part == "bias" and (config.bias == "all" or (config.bias == "lora_only" and module in adapted))
        if not row.alias and (config.saves(module) or bias):
            layer = f"{module}.base_layer" if bias and module in adapted else module
            tensors[f"{_PREFIX}{layer}.{part}"] = row.write({ours: own[ours].detach() for ours in row.ours})
    raw = _to_json(model, config, base)
    if config.target_modules == "all-linear":
        every = targets(model)
        raw["target_modules"] = _shortest_names([name for name in adapted if name in every], every)
    raw["target_modules"] = raw["target_modules"] or []  # None would be PEFT's own choice
    return {**raw, "fan_in_fan_out": any(target.fan_in_fan_out for target, _ in adapted.values())}, tensors


def _shortest_names(adapted: Collection[str], every: Collection[str]) -> list[str]:
    """The ends of the names of layers, or the whole names where another layer's name ends so, too.

    PEFT writes such lists, for its own "all-linear" takes in layers that belong to a classifier (DistilBERT's).
    """
    ends = {name.rpartition(".")[2] for name in adapted}
    others = {name.rpartition(".")[2] for name in every if name not in adapted}
    return sorted(adapted if ends & others else ends)


def saves_classifier(model: Transformer, config: LoraConfig) -> bool:
    """Whether an adapter holds the classifier of its model."""
    if model.config.head.kind not in CLASSIFIERS:
        return False
    return any(is_output_layer(model, target) and config.saves(name) for name, target in targets(model).items())


def _to_json(model: Transformer, config: LoraConfig, base: str | None) -> dict[str, Any]:
    fields: dict[str, Any] = {theirs: getattr(config, ours) for theirs, ours in _FIELDS.items()}
    fields["lora_alpha"] = config.alpha_of("")
    task = _TASKS.get(model.config.head.kind, FEATURE_EXTRACTION)
    if task in ("SEQ_CLS", "TOKEN_CLS") and not saves_classifier(model, config):
        task = None  # PEFT would look for the classifier's weights
    if task == "CAUSAL_LM" and not model.config.is_decoder_only:
        task = SEQ2SEQ if model.config.is_encoder_decoder else None
    # PEFT takes "all" for None or a list, not for an empty one.
    plain = {name: list(value) if isinstance(value, tuple) else value for name, value in fields.items()}
    return {
        **{name: None if value == [] else value for name, value in plain.items()},
        "peft_type": "LORA",
        "task_type": task,
        "base_model_name_or_path": base,
        "inference_mode": True,
        "init_lora_weights": True,
    }


MLX_FIELDS = {"lora_parameters", "fine_tune_type"}
"""Fields of the config file by which it is told from PEFT's."""
_MLX_SUFFIXES = {".lora_a": "a", ".lora_b": "b", ".m": "magnitude"}


@dataclass(frozen=True)
class LoraParameters:
    """The lora_parameters of an adapter_config.json."""

    scale: float = 20.0
    alpha: float | None = None
    rank: int | None = None
    dropout: float = 0.0
    keys: Sequence[str] | None = None


def read_mlx(directory: Path) -> StoredAdapter:
    """Read an adapter in mlx-lm's format. Raises UserError where it is damaged, or of a kind that is not supported."""
    path, weights = directory / CONFIG, directory / MLX_WEIGHTS
    raw = limits.read_object(path)
    kind = raw.get("fine_tune_type", "lora")
    if kind not in ("lora", "dora"):
        raise UserError(f"{path}: fine_tune_type {quote(kind)} is no adapter: only lora and dora are.")
    parameters = make(LoraParameters, raw.get("lora_parameters") or {}, f"{path}: lora_parameters.")
    layers, others = by_layer(read_tensors(weights), _MLX_SUFFIXES)
    for key in (*others, *(name for name, parts in layers.items() if any(part.dim() > 2 for part in parts.values()))):
        raise UserError(f"{weights}: the weight {quote(key)} is none of an adapter.")
    layers = {name: {part: m.t().contiguous() for part, m in parts.items()} for name, parts in layers.items()}
    ranks = {len(parts["a"]) for parts in layers.values() if "a" in parts and parts["a"].dim() == 2}
    if len(ranks) != 1:
        raise UserError(f"{weights} should hold adapters of one rank, and has {len(ranks) or 'none'}.")
    (rank,) = ranks
    ends = sorted({module.rpartition(".")[2] for module in layers})
    config = LoraConfig(rank=rank, alpha=parameters.scale * rank, target_modules=ends, use_dora=kind == "dora")
    return StoredAdapter(config, layers)


def mlx_files(model: Transformer, config: LoraConfig, name: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The config file and the tensors of an adapter. Raises UserError where mlx-lm has no form for it."""
    if config.rank_pattern or config.alpha_pattern or not config.is_low_rank_only:
        raise UserError("mlx-lm's adapters have one rank and one scale, and no other weights: save it as PEFT's.")
    tensors: dict[str, Tensor] = {}
    layers = adapted_layers(model, name)
    for module, (target, matrices) in layers.items():
        if target.is_embedding or target.count > 1:
            raise UserError("mlx-lm's adapters of embeddings and experts have another form: save it as PEFT's.")
        tensors |= {f"{module}.lora_a": matrices.a.t(), f"{module}.lora_b": matrices.b.t()}
        if matrices.magnitude is not None:
            tensors[f"{module}.m"] = matrices.magnitude
    scale = config.scale_of("", config.rank)
    parameters = {"rank": config.rank, "scale": scale, "dropout": config.dropout, "keys": sorted(layers)}
    kind = "dora" if config.use_dora else "lora"
    return {"fine_tune_type": kind, "num_layers": -1, "lora_parameters": parameters}, tensors
