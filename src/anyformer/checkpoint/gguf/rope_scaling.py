"""How a GGUF file says that rotary positions are stretched: linear and YaRN by keys, LLaMA 3 by a tensor of factors."""

import math
from collections.abc import Sequence
from typing import Any

from anyformer.checkpoint.gguf.architecture import Contents
from anyformer.config import ModelConfig
from anyformer.errors import UserError, quote

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
        raise UserError(f"The rope scaling {quote(kind)} is not supported (linear and yarn are).")
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
    """Divisors of the rotary frequencies (`rope_freqs.weight`), where the model scales as LLaMA 3 does."""
    scaling = config.position.scaling
    if scaling is None or scaling.kind != "llama3":
        return None
    head_dim = config.attention.head_dim or config.d_model // config.attention.heads
    length, low, high = scaling.original_length or LLAMA3[0], scaling.low_frequency, scaling.high_frequency
    turns = _turns(length, config.position.theta, head_dim // 2)
    return [_divisor(turn, scaling.factor, low, high) for turn in turns]


def _turns(length: float, theta: float, pairs: int) -> list[float]:
    """How often each pair of a head turns over this many tokens."""
    return [length / (2 * math.pi * theta ** (i / pairs)) for i in range(pairs)]


def _divisor(turns: float, factor: float, low: float, high: float) -> float:
    keep = min(max((turns - low) / (high - low), 0.0), 1.0)
    return 1 / ((1 - keep) / factor + keep)


def _llama3(divisors: Sequence[float], theta: float) -> dict[str, Any]:
    """The scaling whose factors these are.

    How much of a frequency is kept is linear in how often it turns over the original length. Where the factors leave
    that line open, the band is as wide as usual; the length is always the usual one, since only its ratios to the
    frequencies matter: models with equal factors are equal.
    """
    factor = max(divisors)
    length, low, high = LLAMA3
    turns = _turns(length, theta, len(divisors))
    shares = [(1 / d - 1 / factor) / (1 - 1 / factor) if factor > 1 else 1.0 for d in divisors]
    points = list(zip(turns, shares, strict=True))
    blended = [(turn, share) for turn, share in points if 1e-4 < share < 1 - 1e-4]
    divided = [(turn, 0.0) for turn, share in points if share <= 1e-4]
    bands = [(low, high)]
    bands += [(turn / (1 + 3 * share), 4 * turn / (1 + 3 * share)) for turn, share in blended[:1] + divided[:1]]
    bands += [(turn / 4, turn) for turn, share in points if share >= 1 - 1e-4]
    for (x0, y0), (x1, y1) in ((blended[0], other) for other in (blended[1:][-1:] + divided[:1])):
        width = (x0 - x1) / (y0 - y1)
        bands.append((x0 - y0 * width, x0 + (1 - y0) * width))
    for bottom, top in bands:
        if 0 < bottom < top and alike([_divisor(turn, factor, bottom, top) for turn in turns], divisors):
            rope = {"rope_type": "llama3", "factor": factor, "original_max_position_embeddings": length}
            return {**rope, "low_freq_factor": bottom, "high_freq_factor": top}
    raise UserError("The factors in rope_freqs.weight are not those of LLaMA 3's scaling, the only one supported.")


def alike(a: Sequence[float], b: Sequence[float]) -> bool:
    """Whether two lists of factors are the same but for rounding."""
    return len(a) == len(b) and all(abs(x - y) <= 1e-5 * y for x, y in zip(a, b, strict=True))
