"""Adapters in mlx-lm's format: adapter_config.json of another schema, and adapters.safetensors, in and out.

Its matrices are ours transposed, and its scale is applied as it is: alpha is scale times rank.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from anyformer import limits
from anyformer.adapters.config import LoraConfig
from anyformer.adapters.modules import targets
from anyformer.checkpoint.peft import StoredAdapter
from anyformer.checkpoint.tensors import read_tensors
from anyformer.errors import UserError, quote
from anyformer.model import Transformer
from anyformer.schema import make

CONFIG, WEIGHTS = "adapter_config.json", "adapters.safetensors"
_PARTS = {".lora_a": "a", ".lora_b": "b", ".m": "magnitude"}


@dataclass(frozen=True)
class LoraParameters:
    """The lora_parameters of an adapter_config.json."""

    scale: float = 20.0
    alpha: float | None = None
    rank: int | None = None
    dropout: float = 0.0
    keys: Sequence[str] | None = None


def is_mlx(raw: Mapping[str, Any]) -> bool:
    """Whether an adapter_config.json is one of mlx-lm's."""
    return "lora_parameters" in raw or "fine_tune_type" in raw


def read(directory: Path) -> StoredAdapter:
    """Read an adapter. Raises UserError where it is damaged, or of a kind that is not supported."""
    path = directory / CONFIG
    raw = limits.read_object(path)
    kind = raw.get("fine_tune_type", "lora")
    if kind not in ("lora", "dora"):
        raise UserError(f"{path}: fine_tune_type {quote(kind)} is no adapter: only lora and dora are.")
    parameters = make(LoraParameters, raw.get("lora_parameters") or {}, f"{path}: lora_parameters.")
    layers: defaultdict[str, dict[str, Tensor]] = defaultdict(dict)
    for key, tensor in read_tensors(directory / WEIGHTS).items():
        suffix = next((each for each in _PARTS if key.endswith(each)), None)
        if suffix is None or tensor.dim() > 2:
            raise UserError(f"{directory / WEIGHTS}: the weight {quote(key)} is none of an adapter.")
        layers[key.removesuffix(suffix)][_PARTS[suffix]] = tensor.t().contiguous()
    ranks = {len(parts["a"]) for parts in layers.values() if "a" in parts and parts["a"].dim() == 2}
    if len(ranks) != 1:
        raise UserError(f"{directory / WEIGHTS} should hold adapters of one rank, and has {len(ranks) or 'none'}.")
    (rank,) = ranks
    ends = sorted({module.rpartition(".")[2] for module in layers})
    dora = kind == "dora"
    alpha = parameters.scale * rank
    return StoredAdapter(LoraConfig(rank=rank, alpha=alpha, target_modules=ends, use_dora=dora), layers)


def files(model: Transformer, config: LoraConfig, name: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The config file and the tensors of an adapter. Raises UserError where mlx-lm has no form for it."""
    if config.rank_pattern or config.alpha_pattern or not config.is_low_rank_only:
        raise UserError("mlx-lm's adapters have one rank and one scale, and no other weights: save it as PEFT's.")
    tensors: dict[str, Tensor] = {}
    keys: list[str] = []
    for module, target in targets(model).items():
        found = target.matrices(name)
        if found is None:
            continue
        if target.is_embedding:
            raise UserError("mlx-lm's adapters of embeddings have another form: save it as PEFT's.")
        keys.append(module)
        tensors |= {f"{module}.lora_a": found.a.t(), f"{module}.lora_b": found.b.t()}
        if found.magnitude is not None:
            tensors[f"{module}.m"] = found.magnitude
    parameters = {"rank": config.rank, "scale": config.scale_of("", config.rank), "dropout": config.dropout}
    kind = "dora" if config.use_dora else "lora"
    return {"fine_tune_type": kind, "num_layers": -1, "lora_parameters": {**parameters, "keys": sorted(keys)}}, tensors
