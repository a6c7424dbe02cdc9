"""Contents of a GGUF file, and the scaled rotary positions in them: keys (linear, YaRN) or a tensor (LLaMA 3)."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from anyformer.config import ModelConfig, check_layers
from anyformer.errors import UserError, quote
from anyformer.families.base import Raw

Output = Literal["absent", "same", "scaled", "own"]


@dataclass(frozen=True)
class Contents:
    """Contents of a GGUF file without the weights."""

    metadata: Raw
    """The key-value pairs of the file."""
    shapes: Mapping[str, tuple[int, ...]]
    """Shapes of the tensors, the slowest dimension first (as in torch; the file counts the other way round)."""
    output: Output = "absent"
    """Comparison of `output.weight` with the token table: the same, the same over sqrt(d_model), or its own."""
    rope_factors: Sequence[float] | None = None
    """`rope_freqs.weight`: what each rotary frequency is divided by."""

    @property
    def architecture(self) -> str:
        """`general.architecture`. Raises UserError where it is missing."""
        name = self.metadata.get("general.architecture")
        if not isinstance(name, str):
            raise UserError("The file has no general.architecture, so it does not say what model it holds.")
        return name

    def get(self, key: str) -> Any:
        """The value of one of the architecture's own keys, None where it is missing."""
        return self.metadata.get(f"{self.architecture}.{key}")


def layers(contents: Contents, prefix: str = "") -> int:
    """The number of layers in the names of tensors: `blk.0`, `blk.1`, ... Raises UserError for too many."""
    pattern = re.compile(re.escape(prefix) + r"blk\.(\d{1,9})\.")
    count = 1 + max((int(m[1]) for name in contents.shapes if (m := pattern.match(name))), default=-1)
    check_layers(count, "The number of layers in the names of the tensors")
    return count


_TOKEN_KEYS = {
    "bos_token_id": "tokenizer.ggml.bos_token_id",
    "eos_token_id": "tokenizer.ggml.eos_token_id",
    "pad_token_id": "tokenizer.ggml.padding_token_id",
}
_ENDS = ("tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id")


def token_ids(contents: Contents) -> dict[str, Any]:
    """Ids of special tokens. A conversation may end with a token of its own beside the end of a text."""
    size = contents.shapes["token_embd.weight"][0]

    def token_id(key: str) -> int | None:
        value = contents.metadata.get(key)
        return value if isinstance(value, int) and 0 <= value < size else None

    raw: dict[str, Any] = {field: token_id(key) for field, key in _TOKEN_KEYS.items()}
    ends = dict.fromkeys(end for end in (raw["eos_token_id"], *map(token_id, _ENDS)) if end is not None)
    if len(ends) > 1:
        raw["eos_token_id"] = list(ends)
    return raw


_ORIGINAL, _BETAS = "rope.scaling.original_context_length", ("beta_fast", "beta_slow")
LLAMA3 = (8192, 1.0, 4.0)
"""The original length and the two frequencies of every published LLaMA 3."""


def read_rope_scaling(contents: Contents) -> dict[str, Any]:
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
        betas = {name: contents.get(f"rope.scaling.yarn_{name}") for name in _BETAS}
        rope |= {name: beta for name, beta in betas.items() if beta is not None}
    return {"rope_scaling": rope}


def write_rope_scaling(config: ModelConfig) -> dict[str, Any]:
    """The keys that `read_rope_scaling` reads. LLaMA 3's scaling has none: it goes into a tensor (`rope_factors`)."""
    scaling = config.position.scaling
    if scaling is None or scaling.kind not in ("linear", "yarn"):
        return {}
    keys: dict[str, Any] = {"rope.scaling.type": scaling.kind, "rope.scaling.factor": scaling.factor}
    if scaling.kind == "yarn":
        keys[_ORIGINAL] = scaling.original_length
        keys |= {f"rope.scaling.yarn_{name}": getattr(scaling, name) for name in _BETAS}
    return keys


def rope_factors(config: ModelConfig) -> list[float] | None:
    """Divisors of the rotary frequencies (`rope_freqs.weight`), where the model scales as LLaMA 3 does."""
    scaling = config.position.scaling
    if scaling is None or scaling.kind != "llama3":
        return None
    turns = _turns(scaling.original_length or LLAMA3[0], config.position.theta, config.head_dim // 2)
    return [_divisor(turn, scaling.factor, scaling.low_frequency, scaling.high_frequency) for turn in turns]


def _turns(length: float, theta: float, pairs: int) -> list[float]:
    """Turns of each pair of a head over this many tokens."""
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
        if 0 < bottom < top and same_factors([_divisor(turn, factor, bottom, top) for turn in turns], divisors):
            rope = {"rope_type": "llama3", "factor": factor, "original_max_position_embeddings": length}
            return {**rope, "low_freq_factor": bottom, "high_freq_factor": top}
    raise UserError("The factors in rope_freqs.weight are not those of LLaMA 3's scaling, the only one supported.")


def same_factors(a: Sequence[float], b: Sequence[float]) -> bool:
    """Whether two lists of factors are the same but for rounding."""
    return len(a) == len(b) and all(abs(x - y) <= 1e-5 * y for x, y in zip(a, b, strict=True))
