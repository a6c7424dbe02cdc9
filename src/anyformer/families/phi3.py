"""Phi-3 (Abdin et al. 2024, 2404.14219), section 2; Phi-4 (2412.08905), section 3; Phi-4-mini (2503.01743), section 2.

LLaMA with queries, keys and values in one matrix, gate and up in another, and LongRoPE (Ding et al. 2024, 2402.13753).
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from anyformer.config import HeadKind, ModelConfig
from anyformer.errors import UserError, quote
from anyformer.families.base import SIZES, Raw, Values, classes, fields_of, special_tokens
from anyformer.families.llama import FIELDS, LAYER, LLAMA, NO_BIAS, decoder_rows
from anyformer.families.rotary import (
    ORIGINAL,
    head_operations,
    read_rope,
    write_rope,
)
from anyformer.families.rows import QKV, SPLIT, Row, linear

_ORIGINAL_LENGTH = 4096
"""The length of the first training where config.json leaves it out."""


def _derived(raw: Raw, values: Values, head: HeadKind) -> Values:
    # Older files call LongRoPE "su", or "yarn".
    scaling: Raw = raw.get("rope_scaling") or raw.get("rope_parameters") or {}
    kind = scaling.get("rope_type") or scaling.get("type") or "default"
    if kind != "default":
        if kind not in ("longrope", "su", "yarn"):
            raise UserError(f"config.json: the rope scaling {quote(kind)} is not supported for Phi-3 (longrope is).")
        raw = {ORIGINAL: _ORIGINAL_LENGTH, **raw, "rope_scaling": {**scaling, "rope_type": "longrope"}}
    return read_rope(raw, values, head)


def _written(config: ModelConfig) -> dict[str, Any]:
    scaling = config.position.scaling
    return {**write_rope(config), ORIGINAL: (scaling and scaling.original_length) or _ORIGINAL_LENGTH}


_GATE_UP = [f"decoder.blocks.{{i}}.feed_forward.{part}" for part in ("gate", "up")]
_LAYER = {name: ours for name, ours in LAYER.items() if f"decoder.blocks.{{i}}.{ours}" not in (*QKV, *_GATE_UP)}


def _rows(config: ModelConfig) -> Sequence[Row]:
    heads = config.attention.heads
    kv_heads = config.attention.kv_heads or heads
    qkv = linear("model.layers.{i}.self_attn.qkv_proj", QKV, head_operations(config)(heads, kv_heads, kv_heads))
    return decoder_rows(_LAYER, [*qkv, *linear("model.layers.{i}.mlp.gate_up_proj", _GATE_UP, SPLIT)])


# Ding et al. search for these factors, which have no formula.
_MINI_LONG_FACTOR = [
    *(1, 1.118320672, 1.250641126, 1.398617824, 1.564103225, 1.74916897, 1.956131817, 2.187582649, 2.446418898),
    *(2.735880826, 3.059592084, 3.421605075, 3.826451687, 4.279200023, 4.785517845, 5.351743533, 5.984965424),
    *(6.693110555, 7.485043894, 8.370679318, 9.36110372, 10.4687158, 11.70738129, 13.09260651, 14.64173252),
    *(16.37415215, 18.31155283, 20.47818807, 22.90118105, 25.61086418, 28.64115884, 32.03, 32.1, 32.13, 32.23),
    *(32.6, 32.61, 32.64, 32.66, 32.7, 32.71, 32.93, 32.97, 33.28, 33.49, 33.5, 44.16, 47.77),
]
_LONGROPE = {"type": "longrope", "short_factor": [1.0] * 48, "long_factor": _MINI_LONG_FACTOR}
_PHI4 = {"bos_token_id": 100257, "eos_token_id": 100265, "pad_token_id": 100349}
_MINI = {
    **dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), 199999),
    "vocab_size": 200064,
    "num_key_value_heads": 8,
    "max_position_embeddings": 131072,
    "sliding_window": 262144,
    "partial_rotary_factor": 0.75,
    "rope_scaling": _LONGROPE,
    "tie_word_embeddings": True,
}
FAMILY = replace(
    LLAMA,
    model_type="phi3",
    architectures=classes("Phi3", "ForCausalLM"),
    fields=fields_of(
        FIELDS,
        {
            "sliding_window": ("attention.window", None),
            "partial_rotary_factor": ("position.rotary_fraction", 1.0),
            "resid_pdrop": ("dropout", 0.0),
        },
        special_tokens(bos=1, eos=32000, pad=32000),
        without=("head_dim",),
        **SIZES(3072, 32, 32, 8192, vocab_size=32064, max_position_embeddings=4096),
        rms_norm_eps=1e-5,
    ),
    constants={**LLAMA.constants, **NO_BIAS},
    derived=_derived,
    written=_written,
    rows=_rows,
    published={
        "phi-3-mini": {"sliding_window": 2047},
        "phi-3-medium": SIZES(5120, 40, 40, 17920, num_key_value_heads=10, sliding_window=2047),
        "phi-4": SIZES(
            *(5120, 40, 40, 17920),
            num_key_value_heads=10,
            vocab_size=100352,
            max_position_embeddings=16384,
            rope_theta=250_000.0,
            **_PHI4,
        ),
        "phi-4-mini": SIZES(3072, 32, 24, 8192, **_MINI),
    },
)
