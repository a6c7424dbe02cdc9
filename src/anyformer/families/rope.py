"""Rotary settings in config.json, in the form of transformers 5 (`rope_parameters`) and the older one."""

import math
from typing import Any

from anyformer.config import PositionConfig, RotaryScaling
from anyformer.errors import UserError, quote
from anyformer.families.base import Raw


def read(raw: Raw, max_length: int) -> dict[str, Any]:
    """The fields of PositionConfig in a config.json. Raises UserError for a scaling that is not known."""
    rope: Raw = raw.get("rope_scaling") or raw.get("rope_parameters") or {}
    kind = rope.get("rope_type") or rope.get("type") or "default"
    theta = float(rope.get("rope_theta") or raw.get("rope_theta") or 10_000.0)
    if kind == "default":
        return {"kind": "rotary", "theta": theta}
    if kind not in ("linear", "dynamic", "llama3", "yarn"):
        raise UserError(
            f"config.json: the rope scaling {quote(kind)} is not supported (linear, dynamic, llama3 and yarn are)."
        )
    given: dict[str, Any] = {}
    if kind in ("linear", "dynamic"):
        factor = float(rope["factor"])
    else:
        original = "original_max_position_embeddings"
        given["original_length"] = raw.get(original) or rope.get(original) or max_length
        factor = float(rope.get("factor") or max_length / given["original_length"])
    if kind == "llama3":
        given["low_frequency"] = float(rope["low_freq_factor"])
        given["high_frequency"] = float(rope["high_freq_factor"])
    elif kind == "yarn":
        given["beta_fast"] = float(rope.get("beta_fast") or 32)
        given["beta_slow"] = float(rope.get("beta_slow") or 1)
        given["attention_factor"] = _attention_factor(rope, factor)
        given["truncate"] = rope.get("truncate", True)
    return {"kind": "rotary", "theta": theta, "scaling": RotaryScaling(kind=kind, factor=factor, **given)}


def _attention_factor(rope: Raw, factor: float) -> float | None:
    """YaRN's factor on cosines and sines where it is given, or follows from DeepSeek's two mscales."""
    if rope.get("attention_factor") is not None:
        return float(rope["attention_factor"])
    if not (rope.get("mscale") and rope.get("mscale_all_dim")):
        return None
    if factor <= 1:
        return 1.0
    return (0.1 * rope["mscale"] * math.log(factor) + 1) / (0.1 * rope["mscale_all_dim"] * math.log(factor) + 1)


def write(position: PositionConfig) -> dict[str, Any]:
    """Write positions in both forms, so that older readers understand them as well."""
    scaling = position.scaling
    rope: dict[str, Any] = {"rope_type": scaling.kind if scaling else "default", "rope_theta": position.theta}
    if scaling is not None:
        rope["factor"] = scaling.factor
        if scaling.original_length is not None:
            rope["original_max_position_embeddings"] = scaling.original_length
        if scaling.kind == "llama3":
            rope |= {"low_freq_factor": scaling.low_frequency, "high_freq_factor": scaling.high_frequency}
        if scaling.kind == "yarn":
            rope |= {"beta_fast": scaling.beta_fast, "beta_slow": scaling.beta_slow, "truncate": scaling.truncate}
            if scaling.attention_factor is not None:
                rope["attention_factor"] = scaling.attention_factor
    return {"rope_theta": position.theta, "rope_scaling": rope if scaling else None, "rope_parameters": rope}
