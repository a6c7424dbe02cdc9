"""Variants of LLaMA. OLMo 2 (OLMo Team 2025, 2501.00656), section 2, has norms on the branches alone, and on all
queries and keys; OLMo 3 (OLMo Team 2025) a window in three layers of four as well; nanochat (Karpathy 2025), as
transformers has it, norms without weights, squared ReLU and capped logits. Phi-3 (Abdin et al. 2024, 2404.14219),
section 2, Phi-4 (2412.08905), section 3, and Phi-4-mini (2503.01743), section 2, have queries, keys and values in one
matrix, gate and up in another, and LongRoPE (Ding et al. 2024, 2402.13753).
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from anyformer.config import HeadKind, ModelConfig
from anyformer.errors import UserError, quote
from anyformer.families.base import GROUPED_SIZES, SIZES, Raw, Values, classes, fields_of, special_tokens
from anyformer.families.llama import BIAS, FIELDS, LAYER, LLAMA, NO_BIAS, decoder_rows
from anyformer.families.rotary import (
    ORIGINAL,
    head_operations,
    read_layer_types,
    read_layers,
    read_rope,
    rotary_rows,
    write_rope,
    write_ropes,
    write_windows,
    yarn,
)
from anyformer.families.rows import QKV, SPLIT, Row, linear


def _derived_olmo3(raw: Raw, values: Values, head: HeadKind) -> Values:
    window = raw.get("sliding_window", 4096)
    types = read_layer_types(raw, values["decoder_layers"], lambda layer: (layer + 1) % 4 != 0)
    # An older file's theta is that of the layers without a window alone.
    return read_layers(raw, values, head, types, window, (raw.get("rope_theta", 500_000.0), 500_000.0))


def _written_olmo3(config: ModelConfig) -> dict[str, Any]:
    return {**write_ropes(config), **write_windows(config)}


_OLMO_LAYER = {
    **{name: ours for name, ours in LAYER.items() if name != "input_layernorm"},
    "post_attention_layernorm": "attention_output_norm",
    "post_feedforward_layernorm": "feed_forward_output_norm",
}
_PRESET = {"vocab_size": 100_352, "rope_theta": 500_000.0, "rms_norm_eps": 1e-6, "bos_token_id": None}
_OLMO2_PRESET = {**_PRESET, "max_position_embeddings": 4096, "eos_token_id": 100_257, "pad_token_id": 100_277}
_OLMO3_PRESET = {
    **_OLMO2_PRESET,
    "vocab_size": 100_278,
    "max_position_embeddings": 65536,
    "rope_scaling": yarn(8.0, 8192, attention_factor=1.2079441541679836),
}
_OLMO2 = replace(
    LLAMA,
    model_type="olmo2",
    architectures=classes("Olmo2", "ForCausalLM", ("Model", "ForSequenceClassification")),
    fields=fields_of(FIELDS, BIAS, special_tokens(eos=50279, pad=1), vocab_size=50304, rms_norm_eps=1e-5),
    constants={**LLAMA.constants, "attention.qk_norm": "width", "feed_forward.bias": False, "norm.placement": "branch"},
    rows=decoder_rows(_OLMO_LAYER),
    published={
        "olmo-2-1b": GROUPED_SIZES(2048, 16, 16, 16, 8192, **_OLMO2_PRESET),
        "olmo-2-7b": GROUPED_SIZES(4096, 32, 32, 32, 11008, **_OLMO2_PRESET),
        "olmo-2-13b": GROUPED_SIZES(5120, 40, 40, 40, 13824, **_OLMO2_PRESET),
        "olmo-2-32b": GROUPED_SIZES(5120, 64, 40, 8, 27648, **_OLMO2_PRESET),
    },
)
_OLMO3 = replace(
    _OLMO2,
    model_type="olmo3",
    architectures=classes("Olmo3", "ForCausalLM", ("Model", "ForSequenceClassification")),
    derived=_derived_olmo3,
    written=_written_olmo3,
    published={
        "olmo-3-7b": GROUPED_SIZES(4096, 32, 32, 32, 11008, **_OLMO3_PRESET),
        "olmo-3-32b": GROUPED_SIZES(5120, 64, 40, 8, 27648, **_OLMO3_PRESET),
    },
)
OLMO = [_OLMO2, _OLMO3]

_NANOCHAT_LAYER = {
    "self_attn.v_proj": "attention.value",
    "self_attn.o_proj": "attention.output",
    "mlp.fc1": "feed_forward.up",
    "mlp.fc2": "feed_forward.down",
}


def _derived_nanochat(raw: Raw, values: Values, head: HeadKind) -> Values:
    rope = read_rope(raw, values, head)
    kind = rope.get("position.scaling", {}).get("kind")
    if kind in ("yarn", "longrope"):
        raise UserError(f"config.json: the rope scaling {quote(kind)} is not supported for nanochat: it moves lengths.")
    cap = {"head.softcap": raw.get("final_logit_softcapping", 15.0)} if head == "language_model" else {}
    return {**rope, **cap}


def _written_nanochat(config: ModelConfig) -> dict[str, Any]:
    return {**write_rope(config), "final_logit_softcapping": config.head.softcap}


def _rows_nanochat(config: ModelConfig) -> list[Row]:
    # Its halves turn the other way round. That its norms come after the rotation changes nothing: they have no weights.
    return decoder_rows(_NANOCHAT_LAYER, rotary_rows(config, "swapped"))


NANOCHAT = replace(
    LLAMA,
    model_type="nanochat",
    architectures=classes("NanoChat", "ForCausalLM", ("Model",)),
    fields=fields_of(
        FIELDS,
        BIAS,
        special_tokens(bos=0, eos=1, pad=1),
        **SIZES(768, 12, 6, 8192, vocab_size=50304, hidden_act="relu2"),
    ),
    constants={
        "position.kind": "rotary",
        "norm.kind": "rms_plain",
        "embedding.norm": True,
        "attention.qk_norm": "head",
        "feed_forward.bias": False,
    },
    derived=_derived_nanochat,
    written=_written_nanochat,
    rows=_rows_nanochat,
    published={
        "nanochat-d20": SIZES(1280, 20, 10, 5120, vocab_size=65536),
        "nanochat-d32": SIZES(2048, 32, 16, 8192, vocab_size=65536),
    },
)


_ORIGINAL_LENGTH = 4096
"""The length of the first training where config.json leaves it out."""


def _derived_phi3(raw: Raw, values: Values, head: HeadKind) -> Values:
    # Older files call LongRoPE "su", or "yarn".
    scaling: Raw = raw.get("rope_scaling") or raw.get("rope_parameters") or {}
    kind = scaling.get("rope_type") or scaling.get("type") or "default"
    if kind != "default":
        if kind not in ("longrope", "su", "yarn"):
            raise UserError(f"config.json: the rope scaling {quote(kind)} is not supported for Phi-3 (longrope is).")
        raw = {ORIGINAL: _ORIGINAL_LENGTH, **raw, "rope_scaling": {**scaling, "rope_type": "longrope"}}
    return read_rope(raw, values, head)


def _written_phi3(config: ModelConfig) -> dict[str, Any]:
    scaling = config.position.scaling
    return {**write_rope(config), ORIGINAL: (scaling and scaling.original_length) or _ORIGINAL_LENGTH}


_GATE_UP = [f"decoder.blocks.{{i}}.feed_forward.{part}" for part in ("gate", "up")]
_PHI3_LAYER = {name: ours for name, ours in LAYER.items() if f"decoder.blocks.{{i}}.{ours}" not in (*QKV, *_GATE_UP)}


def _rows_phi3(config: ModelConfig) -> Sequence[Row]:
    heads = config.attention.heads
    kv_heads = config.attention.kv_heads or heads
    qkv = linear("model.layers.{i}.self_attn.qkv_proj", QKV, head_operations(config)(heads, kv_heads, kv_heads))
    return decoder_rows(_PHI3_LAYER, [*qkv, *linear("model.layers.{i}.mlp.gate_up_proj", _GATE_UP, SPLIT)])


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
PHI3 = replace(
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
    derived=_derived_phi3,
    written=_written_phi3,
    rows=_rows_phi3,
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
