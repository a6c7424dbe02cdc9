"""Adapters in mlx-lm's format: adapter_config.json of another schema, and adapters.safetensors, in and out.

Its matrices are ours transposed, and its scale is applied as it is: alpha is scale times rank.
"""

import json
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from torch import Tensor

from anyformer import limits
from anyformer.adapters.config import LoraConfig
from anyformer.adapters.modules import attach, targets
from anyformer.blocks.adapter import LowRankAdapter
from anyformer.checkpoint.tensors import read_tensors, write_adapter
from anyformer.errors import UserError
from anyformer.model import Transformer

CONFIG, WEIGHTS = "adapter_config.json", "adapters.safetensors"
_PARTS = {".lora_a": "a", ".lora_b": "b", ".m": "magnitude"}


def is_mlx(raw: Mapping[str, Any]) -> bool:
    """Whether an adapter_config.json is one of mlx-lm's."""
    return "lora_parameters" in raw or "fine_tune_type" in raw


def load(model: Transformer, directory: Path, name: str, weight: float = 1.0) -> LoraConfig:
    """Give a model the adapter of a directory. Arguments and errors are those of `peft.load`."""
    raw = limits.read_object(directory / CONFIG)
    kind = raw.get("fine_tune_type", "lora")
    if kind not in ("lora", "dora"):
        raise UserError(f"{directory / CONFIG}: fine_tune_type {kind!r} is no adapter: only lora and dora are.")
    parameters = raw.get("lora_parameters")
    scale = cast("dict[str, Any]", parameters).get("scale", 20.0) if isinstance(parameters, dict) else 20.0
    if not isinstance(scale, int | float) or isinstance(scale, bool):
        raise UserError(f"{directory / CONFIG}: lora_parameters.scale is a number, not {json.dumps(scale)[:80]}.")
    if kind == "dora" and weight != 1.0:
        raise UserError(f"{directory} is a DoRA adapter, which can't be weighted: give it without a weight.")
    found, known = _read(directory / WEIGHTS), targets(model)
    ranks: set[int] = set()
    for module, parts in found.items():
        target = known.get(module)
        if target is None:
            raise UserError(f"{directory}: this model has no layer {module}: the adapter was made for another model.")
        outputs, inputs = sum(part.weight.shape[0] for part in target.modules), target.modules[0].weight.shape[1]
        a, b, magnitude = parts.get("a"), parts.get("b"), parts.get("magnitude")
        if target.is_embedding or a is None or b is None or (kind == "dora") != (magnitude is not None):
            raise UserError(f"{directory}: the adapter of {module} has a part too few or too many.")
        rank = a.shape[-1]
        fits = a.shape == (inputs, rank) and b.shape == (rank, outputs)
        if not fits or (magnitude is not None and magnitude.shape != (outputs,)):
            raise UserError(f"{directory}: the adapter of {module} does not fit this model: it is for another one.")
        ranks.add(rank)
        a, b = (part.t().contiguous().float().to(model.device) for part in (a, b))
        magnitude = None if magnitude is None else magnitude.float().to(model.device)
        attach(target, name, a, b, weight * scale, magnitude=magnitude)
    rank = max(ranks)
    ends = sorted({module.rpartition(".")[2] for module in found})
    return LoraConfig(rank=rank, alpha=scale * rank, target_modules=ends, use_dora=kind == "dora")


def _read(path: Path) -> dict[str, dict[str, Tensor]]:
    tensors = read_tensors(path)
    found: defaultdict[str, dict[str, Tensor]] = defaultdict(dict)
    for key, tensor in tensors.items():
        suffix = next((each for each in _PARTS if key.endswith(each)), None)
        if suffix is None:
            raise UserError(f"{path}: the weight {key} is none of an adapter.")
        found[key.removesuffix(suffix)][_PARTS[suffix]] = tensor
    if not found:
        raise UserError(f"{path} holds no adapter.")
    return found


def save(model: Transformer, directory: Path, config: LoraConfig, name: str) -> None:
    """Write an adapter of a model. Raises UserError where mlx-lm has no form for it, or the disk refuses."""
    one = not config.rank_pattern and not config.alpha_pattern
    if not one or config.modules_to_save or config.bias != "none":
        raise UserError("mlx-lm's adapters have one rank and one scale, and no other weights: save it as PEFT's.")
    tensors: dict[str, Tensor] = {}
    for module, target in targets(model).items():
        found = [
            cast("LowRankAdapter", part.adapters[name])
            for part in target.modules
            if part.adapters is not None and name in part.adapters
        ]
        if found:
            tensors[f"{module}.lora_a"] = found[0].a.t()
            tensors[f"{module}.lora_b"] = target.join([each.b.detach() for each in found]).t()
            lengths = [each.magnitude.detach()[:, None] for each in found if each.magnitude is not None]
            if lengths:
                tensors[f"{module}.m"] = target.join(lengths).flatten()
    parameters = {"rank": config.rank, "scale": config.scale_of("", config.rank), "dropout": config.dropout}
    raw = {
        "fine_tune_type": "dora" if config.use_dora else "lora",
        "num_layers": -1,
        "lora_parameters": {**parameters, "keys": sorted({key.rpartition(".")[0] for key in tensors})},
    }
    write_adapter(directory, CONFIG, raw, WEIGHTS, tensors)
