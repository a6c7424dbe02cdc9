"""Adapters in mlx-lm's format: adapter_config.json of another schema, and adapters.safetensors, in and out.

Its matrices are ours transposed, and its scale is applied as it is: alpha is scale times rank.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from anyformer import limits
from anyformer.adapters.config import LoraConfig
from anyformer.checkpoint.peft import CONFIG, StoredAdapter, adapted_layers, by_layer
from anyformer.checkpoint.sources import read_tensors
from anyformer.errors import UserError, quote
from anyformer.model import Transformer
from anyformer.schema import make

WEIGHTS = "adapters.safetensors"
FIELDS = {"lora_parameters", "fine_tune_type"}
"""Fields of the config file by which it is told from PEFT's."""
_SUFFIXES = {".lora_a": "a", ".lora_b": "b", ".m": "magnitude"}


@dataclass(frozen=True)
class LoraParameters:
    """The lora_parameters of an adapter_config.json."""

    scale: float = 20.0
    alpha: float | None = None
    rank: int | None = None
    dropout: float = 0.0
    keys: Sequence[str] | None = None


def read(directory: Path) -> StoredAdapter:
    """Read an adapter. Raises UserError where it is damaged, or of a kind that is not supported."""
    path, weights = directory / CONFIG, directory / WEIGHTS
    raw = limits.read_object(path)
    kind = raw.get("fine_tune_type", "lora")
    if kind not in ("lora", "dora"):
        raise UserError(f"{path}: fine_tune_type {quote(kind)} is no adapter: only lora and dora are.")
    parameters = make(LoraParameters, raw.get("lora_parameters") or {}, f"{path}: lora_parameters.")
    layers, others = by_layer(read_tensors(weights), _SUFFIXES)
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


def files(model: Transformer, config: LoraConfig, name: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
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
