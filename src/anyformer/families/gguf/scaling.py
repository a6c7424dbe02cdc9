"""How a GGUF file says that rotary positions are stretched: linear and YaRN by keys, LLaMA 3 by a tensor of factors."""

import math
from collections.abc import Sequence
from typing import Any

from anyformer.config import ModelConfig
from anyformer.errors import UserError
from anyformer.families.gguf.base import Contents

_ORIGINAL = "rope.scaling.original_context_length"
LLAMA3 = (8192, 1.0, 4.0)
"""The original length and the two frequencies of every published LLaMA 3."""


def read(contents: Contents) -> dict[str, Any]:
    """`rope_scaling` of a config.json. Raises UserError for a kind that is not known."""
    theta = contents.get("rope.freq_base") or 10_000.0
    kind = contents.get("rope.scaling.type")
    factor = contents.get("rope.scaling.factor")
    if contents.rope_factors is not None:
        return {"rope_scaling": _llama3(contents.rope_factors, theta)}
    if kind in (None, "none") or not factor:
        return {}
    if kind not in ("linear", "yarn"):
        raise UserError(f"The rope scaling {kind!r} is not supported (linear and yarn are).")
    rope: dict[str, Any] = {"rope_type": kind, "factor": factor, "rope_theta": theta}
    if kind == "yarn":
        rope["original_max_position_embeddings"] = contents.get(_ORIGINAL)
        for ours, theirs in (("beta_fast", "yarn_beta_fast"), ("beta_slow", "yarn_beta_slow")):
            if contents.get(f"rope.scaling.{theirs}") is not None:
                rope[ours] = contents.get(f"rope.scaling.{theirs}")
    return {"rope_scaling": rope}


def write(config: ModelConfig) -> dict[str, Any]:
    """The keys that `read` reads. Of LLaMA 3's scaling there are none: it goes into a tensor (`factors`)."""
    scaling = config.position.scaling
    if scaling is None or scaling.kind not in ("linear", "yarn"):
        return {}
    said: dict[str, Any] = {"rope.scaling.type": scaling.kind, "rope.scaling.factor": scaling.factor}
    if scaling.kind == "yarn":
        said[_ORIGINAL] = scaling.original_length
        said["rope.scaling.yarn_beta_fast"] = scaling.beta_fast
        said["rope.scaling.yarn_beta_slow"] = scaling.beta_slow
    return said


def factors(config: ModelConfig) -> list[float] | None:
    """What each rotary frequency is divided by (`rope_freqs.weight`), where the model scales as LLaMA 3 does."""
    scaling = config.position.scaling
    if scaling is None or scaling.kind != "llama3":
        return None
    head_dim = config.attention.head_dim or config.d_model // config.attention.heads
    length, low, high = scaling.original_length or LLAMA3[0], scaling.low_frequency, scaling.high_frequency
    return [
        _divisor(turns, scaling.factor, low, high) for turns in _turns(length, config.position.theta, head_dim // 2)
    ]


def _turns(length: float, theta: float, pairs: int) -> list[float]:
    """How often each pair of a head turns over this many tokens."""
    return [length / (2 * math.pi * theta ** (i / pairs)) for i in range(pairs)]


def _divisor(turns: float, factor: float, low: float, high: float) -> float:
    keep = min(max((turns - low) / (high - low), 0.0), 1.0)
    return 1 / ((1 - keep) / factor + keep)


def _llama3(divisors: Sequence[float], theta: float) -> dict[str, Any]:
    """The scaling whose factors these are.

    How much of a frequency is kept is linear in how often it turns, which gives the length and the lower frequency for
    a band of the usual width; three numbers can't be told apart by a line, and models with equal factors are equal.
    """
    factor, pairs = max(divisors), len(divisors)
    usual = _scaling(factor, *LLAMA3)
    if factor <= 1 or _fits(usual, divisors, theta):
        return usual
    turns = _turns(1.0, theta, pairs)
    blended = [
        (turn, (1 / d - 1 / factor) / (1 - 1 / factor))
        for turn, d in zip(turns, divisors, strict=True)
        if 1.0001 < d < factor * 0.9999
    ]
    if len(blended) >= 2:
        (x0, y0), (x1, y1) = blended[0], blended[-1]
        slope = (y1 - y0) / (x1 - x0)
        low = 3 * (slope * x0 - y0)
        found = _scaling(factor, round(3 * slope), low, low + 3)
        if low > 0 and _fits(found, divisors, theta):
            return found
    raise UserError("The factors in rope_freqs.weight are not those of LLaMA 3's scaling, the only one supported.")


def _scaling(factor: float, length: int, low: float, high: float) -> dict[str, Any]:
    frequencies = {"low_freq_factor": low, "high_freq_factor": high}
    return {"rope_type": "llama3", "factor": factor, "original_max_position_embeddings": length, **frequencies}


def _fits(rope: dict[str, Any], divisors: Sequence[float], theta: float) -> bool:
    low, high, factor = rope["low_freq_factor"], rope["high_freq_factor"], rope["factor"]
    turns = _turns(rope["original_max_position_embeddings"], theta, len(divisors))
    made = [_divisor(turn, factor, low, high) for turn in turns]
    return all(abs(a - b) <= 1e-3 * b for a, b in zip(made, divisors, strict=True))
