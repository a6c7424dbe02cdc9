"""The record of a GGUF architecture: a two-way table of metadata keys, and one of tensor names.

Scaled rotary positions are in keys (linear, YaRN) or in a tensor of factors (LLaMA 3).
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

from anyformer.config import HeadKind, ModelConfig
from anyformer.errors import UserError, quote
from anyformer.families.base import Raw
from anyformer.families.rows import Row

Output = Literal["absent", "same", "scaled", "own"]


@dataclass(frozen=True)
class Contents:
    """Contents of a GGUF file without the weights."""

    metadata: Raw
    """Its key-value pairs."""
    shapes: Mapping[str, tuple[int, ...]]
    """Its tensors, the slowest dimension first (as in torch; the file counts the other way round)."""
    output: Output = "absent"
    """How `output.weight` compares with the token table: the same, the same over sqrt(d_model), or its own."""
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


@dataclass(frozen=True)
class Architecture:
    """One `general.architecture` of GGUF's.

    A model is read through Hugging Face's own words for it: `keys` translates metadata into fields of a config.json,
    which the family then reads as it does its files, and the way back goes through what the family writes.
    """

    name: str
    model_types: Sequence[str]
    """The families whose models it can hold; files are read as the first."""
    head: HeadKind
    keys: Mapping[str, str]
    """Key, after the architecture's name and a dot -> field of config.json. Two keys may say the same."""
    rows: Callable[[ModelConfig], Sequence[Row]]
    """The table of tensor names for a model of this config. Every operation moves whole rows, so that it can be
    applied to quantized tensors as well. An alias with an operation of its own (T5's head) has to be written: other
    programs look for it."""
    inferred: Callable[[Contents], dict[str, Any]] = lambda contents: {}
    """Fields of config.json that follow from which tensors there are, or from several keys."""
    more: Callable[[ModelConfig], dict[str, Any]] = lambda config: {}
    """The keys, after the architecture's name and a dot, that `inferred` reads."""
    adjust: Callable[[ModelConfig, Contents], ModelConfig] = lambda config, contents: config
    """Adjustment by contents that no config.json can express."""
    ignored: Sequence[str] = ()
    """Regular expressions of tensor names that hold no weight of the model."""

    def read(self, contents: Contents) -> dict[str, Any]:
        """The fields of config.json. Raises UserError for a key that is missing or misshapen."""
        raw: dict[str, Any] = {}
        for key, field in self.keys.items():
            value = contents.get(key)
            if value is not None:
                raw[field] = _number(f"{self.name}.{key}", value)
        for key in _REQUIRED:
            if key in self.keys and self.keys[key] not in raw:
                raise UserError(f"The key {self.name}.{key} is missing.")
        if "token_embd.weight" not in contents.shapes:
            raise UserError("The tensor token_embd.weight is missing.")
        raw["vocab_size"] = contents.shapes["token_embd.weight"][0]
        return {**raw, **self.inferred(contents), **_tokens(contents)}

    def write(self, config: ModelConfig, raw: Raw) -> dict[str, Any]:
        """The metadata that `read` reads, from the family's config.json."""
        given = {key: raw[field] for key, field in self.keys.items() if raw.get(field) is not None}
        values = {"vocab_size": config.vocab_size, **given, **self.more(config)}
        return {"general.architecture": self.name, **{f"{self.name}.{key}": value for key, value in values.items()}}


_REQUIRED = (
    "block_count",
    "context_length",
    "embedding_length",
    "feed_forward_length",
    "attention.head_count",
    "attention.layer_norm_rms_epsilon",
    "attention.layer_norm_epsilon",
)


def _number(key: str, value: Any) -> int | float:
    if isinstance(value, list) and value and all(v == value[0] for v in cast("list[Any]", value)):
        value = cast("list[Any]", value)[0]  # one number for each layer
    if isinstance(value, bool) or not isinstance(value, int | float) or value < 0:
        raise UserError(f"The key {key} should be one positive number, not {quote(value)}.")
    return value


def layers(contents: Contents, prefix: str = "") -> int:
    """How many layers the file's tensors count: `blk.0`, `blk.1`, ..."""
    pattern = re.compile(re.escape(prefix) + r"blk\.(\d{1,9})\.")
    return 1 + max((int(m[1]) for name in contents.shapes if (m := pattern.match(name))), default=-1)


_TOKEN_KEYS = {
    "bos_token_id": "tokenizer.ggml.bos_token_id",
    "eos_token_id": "tokenizer.ggml.eos_token_id",
    "pad_token_id": "tokenizer.ggml.padding_token_id",
}
_ENDS = ("tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id")


def _tokens(contents: Contents) -> dict[str, Any]:
    """Ids of special tokens. A conversation may end with a token of its own beside the end of a text."""
    size = contents.shapes["token_embd.weight"][0]

    def known(key: str) -> int | None:
        value = contents.metadata.get(key)
        return value if isinstance(value, int) and 0 <= value < size else None

    raw: dict[str, Any] = {field: known(key) for field, key in _TOKEN_KEYS.items()}
    ends = dict.fromkeys(value for value in (raw["eos_token_id"], *(known(key) for key in _ENDS)) if value is not None)
    if len(ends) > 1:
        raw["eos_token_id"] = list(ends)
    return raw


_ORIGINAL = "rope.scaling.original_context_length"
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
        for ours, theirs in (("beta_fast", "yarn_beta_fast"), ("beta_slow", "yarn_beta_slow")):
            if contents.get(f"rope.scaling.{theirs}") is not None:
                rope[ours] = contents.get(f"rope.scaling.{theirs}")
    return {"rope_scaling": rope}


def write_rope_scaling(config: ModelConfig) -> dict[str, Any]:
    """The keys that `read_rope_scaling` reads. LLaMA 3's scaling has none: it goes into a tensor (`rope_factors`)."""
    scaling = config.position.scaling
    if scaling is None or scaling.kind not in ("linear", "yarn"):
        return {}
    said: dict[str, Any] = {"rope.scaling.type": scaling.kind, "rope.scaling.factor": scaling.factor}
    if scaling.kind == "yarn":
        said[_ORIGINAL] = scaling.original_length
        said["rope.scaling.yarn_beta_fast"] = scaling.beta_fast
        said["rope.scaling.yarn_beta_slow"] = scaling.beta_slow
    return said


def rope_factors(config: ModelConfig) -> list[float] | None:
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
        if 0 < bottom < top and same_factors([_divisor(turn, factor, bottom, top) for turn in turns], divisors):
            rope = {"rope_type": "llama3", "factor": factor, "original_max_position_embeddings": length}
            return {**rope, "low_freq_factor": bottom, "high_freq_factor": top}
    raise UserError("The factors in rope_freqs.weight are not those of LLaMA 3's scaling, the only one supported.")


def same_factors(a: Sequence[float], b: Sequence[float]) -> bool:
    """Whether two lists of factors are the same but for rounding."""
    return len(a) == len(b) and all(abs(x - y) <= 1e-5 * y for x, y in zip(a, b, strict=True))
