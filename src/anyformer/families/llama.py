"""LLaMA and its kin: Touvron et al. 2023 (2302.13971), section 2.2; LLaMA 3 (2407.21783), section 3.2;
Mistral 7B (2310.06825), section 2; Qwen2 (2407.10671), section 2.2; Qwen3 (2505.09388), section 2; Granite 3 (IBM
2024); SmolLM3 (Hugging Face 2025).

They differ in biases, windows and norms on queries and keys. Granite has four multipliers, as maximal update
parametrization asks (Yang et al. 2022), SmolLM3 no positions in every fourth layer (Yang et al. 2025, 2501.18795).
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from anyformer.config import HeadKind, ModelConfig, OtherLayers, PositionConfig
from anyformer.errors import UserError
from anyformer.families.base import (
    GROUPED_SIZES,
    SIZES,
    Family,
    Fields,
    Raw,
    Values,
    classes,
    fields_of,
    none_if_default,
    sizes,
    special_tokens,
)
from anyformer.families.rotary import (
    LAYER_TYPES,
    layers_with_window,
    read_layer_types,
    read_list,
    read_period,
    read_rope,
    window_of,
    write_layer_types,
    write_rope,
)
from anyformer.families.rows import Row, linear, linears, row, tied

LAYER = {
    "input_layernorm": "attention_norm",
    "self_attn.q_proj": "attention.query",
    "self_attn.k_proj": "attention.key",
    "self_attn.v_proj": "attention.value",
    "self_attn.o_proj": "attention.output",
    "self_attn.q_norm": "attention.query_norm",
    "self_attn.k_norm": "attention.key_norm",
    "post_attention_layernorm": "feed_forward_norm",
    "mlp.gate_proj": "feed_forward.gate",
    "mlp.up_proj": "feed_forward.up",
    "mlp.down_proj": "feed_forward.down",
}


def decoder_rows(layer: Mapping[str, str], more: Iterable[Row] = (), norm: str = "model.norm") -> list[Row]:
    """The table of a decoder that files call `model`, whose layers have these parts, and more rows."""
    return [
        row("model.embed_tokens.weight", "token_embedding.table.weight"),
        *linears("model.layers.{i}.", "decoder.blocks.{i}.", layer),
        *more,
        *linear(norm, "decoder.final_norm"),
        *tied("lm_head"),
        *linear("score", "head.labels"),
    ]


_LLAMA3 = {"vocab_size": 128256, "max_position_embeddings": 131072, "bos_token_id": 128000, "eos_token_id": 128001}


def _llama3(factor: float, **fields: Any) -> Raw:
    scaling = {"rope_type": "llama3", "factor": factor, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    rope_scaling = {**scaling, "original_max_position_embeddings": 8192}
    rope = {"rope_theta": 500_000.0, "rope_scaling": rope_scaling}
    return {**_LLAMA3, **rope, "rms_norm_eps": 1e-5, "num_key_value_heads": 8, **fields}


_TIED = {"tie_word_embeddings": True}
_SMOLLM2 = {
    "vocab_size": 49152,
    "num_key_value_heads": 3,
    "max_position_embeddings": 8192,
    "rope_theta": 100_000.0,
    "rms_norm_eps": 1e-5,
    "initializer_range": 0.041666666666666664,
    "bos_token_id": 0,
    "eos_token_id": 0,
    **_TIED,
}
# What `anyformer train` trains when nothing else is asked for: in two minutes on two cores, many steps of a small model
# teach more than few of a wide one. It starts at 1 / sqrt(d_model); 0.02 is made for wide models.
NANO = {
    "vocab_size": 2048,
    "max_position_embeddings": 128,
    "initializer_range": 0.09,
    "bos_token_id": None,
    "eos_token_id": None,
    **_TIED,
}
_QWEN2_5 = {"rope_theta": 1_000_000.0, "bos_token_id": 151643, "eos_token_id": 151643, **_TIED}
_QWEN3_PRESET = {**_QWEN2_5, "max_position_embeddings": 40960, "eos_token_id": 151645}

FIELDS: Fields = {
    "vocab_size": ("vocab_size", 32000),
    "hidden_size": ("d_model", 4096),
    "num_hidden_layers": ("decoder_layers", 32),
    "max_position_embeddings": ("max_length", 2048),
    "num_attention_heads": ("attention.heads", 32),
    "num_key_value_heads": ("attention.kv_heads", None),
    "head_dim": ("attention.head_dim", None),
    "attention_dropout": ("attention.dropout", 0.0),
    "intermediate_size": ("feed_forward.width", 11008),
    "hidden_act": ("feed_forward.activation", "silu"),
    "rope_theta": ("position.theta", 10_000.0),
    "rms_norm_eps": ("norm.eps", 1e-6),
    "tie_word_embeddings": ("embedding.tied", False),
    "initializer_range": ("init.std", 0.02),
    **special_tokens(bos=1, eos=2),
}
BIAS: Fields = {"attention_bias": ("attention.bias attention.output_bias", False)}
NO_BIAS = dict.fromkeys(("attention.bias", "attention.output_bias", "feed_forward.bias"), False)
ROWS_WITHOUT_NETWORKS = decoder_rows({name: ours for name, ours in LAYER.items() if not name.startswith("mlp.")})
LLAMA = Family(
    model_type="llama",
    architectures=classes("Llama", "ForCausalLM"),
    fields={**FIELDS, **BIAS, "mlp_bias": ("feed_forward.bias", False)},
    constants={"feed_forward.gated": True, "position.kind": "rotary", "norm.kind": "rms"},
    derived=read_rope,
    written=write_rope,
    rows=decoder_rows(LAYER),
    prefix="model.",
    published={
        "llama-3.2-1b": _llama3(32.0, **SIZES(2048, 16, 32, 8192), head_dim=64, **_TIED),
        "llama-3.2-3b": _llama3(32.0, **SIZES(3072, 28, 24, 8192), head_dim=128, **_TIED),
        "llama-3.1-8b": _llama3(8.0, **SIZES(4096, 32, 32, 14336)),
        "llama-2-7b": SIZES(4096, 32, 32, 11008, max_position_embeddings=4096, rms_norm_eps=1e-5),
        "tinyllama-1.1b": SIZES(2048, 22, 32, 5632, num_key_value_heads=4, rms_norm_eps=1e-5),
        "smollm2-135m": SIZES(576, 30, 9, 1536, **_SMOLLM2),
        "llama-nano": SIZES(128, 4, 4, 384, **NANO),
    },
)
_MISTRAL = replace(
    LLAMA,
    model_type="mistral",
    architectures=classes("Mistral", "ForCausalLM"),
    fields=fields_of(
        FIELDS,
        {"sliding_window": ("attention.window", 4096)},
        max_position_embeddings=131072,
        num_key_value_heads=8,
        intermediate_size=14336,
    ),
    constants={**LLAMA.constants, **NO_BIAS},
    published={"mistral-7b": SIZES(4096, 32, 32, 14336, max_position_embeddings=32768, rms_norm_eps=1e-5)},
)


def _derived_qwen(raw: Raw, values: Values, head: HeadKind) -> Values:
    """Rotary positions, and the window on the upper layers, which newer files list one by one."""
    rope, layers, window = read_rope(raw, values, head), values["decoder_layers"], raw.get("sliding_window", 4096)
    types = read_layer_types(raw, layers, lambda layer: layer >= raw.get("max_window_layers", 28))
    if not raw.get("use_sliding_window", False) or window is None:
        return rope
    return rope | layers_with_window(types, window)


def _written_qwen(config: ModelConfig) -> dict[str, Any]:
    types = write_layer_types(config)
    return {
        **write_rope(config),
        "sliding_window": window_of(config),
        "use_sliding_window": LAYER_TYPES[1] in types,
        "max_window_layers": [*types, LAYER_TYPES[1]].index(LAYER_TYPES[1]),
        "layer_types": types,
    }


_QWEN2 = replace(
    LLAMA,
    model_type="qwen2",
    architectures=classes("Qwen2", "ForCausalLM"),
    fields=fields_of(
        FIELDS,
        special_tokens(),
        vocab_size=151936,
        max_position_embeddings=32768,
        num_key_value_heads=32,
        intermediate_size=22016,
    ),
    constants={**LLAMA.constants, "attention.output_bias": False, "feed_forward.bias": False},
    derived=_derived_qwen,
    written=_written_qwen,
    published={"qwen2.5-0.5b": SIZES(896, 24, 14, 4864, num_key_value_heads=2, **_QWEN2_5)},
)
QWEN3 = replace(
    _QWEN2,
    model_type="qwen3",
    architectures=classes("Qwen3", "ForCausalLM"),
    fields=fields_of(_QWEN2.fields, BIAS, head_dim=128),
    constants={**LLAMA.constants, "attention.qk_norm": "head", "feed_forward.bias": False},
    published={"qwen3-0.6b": SIZES(1024, 28, 16, 3072, num_key_value_heads=8, **_QWEN3_PRESET)},
)


def _derived_granite(raw: Raw, values: Values, head: HeadKind) -> Values:
    scale = none_if_default(values["attention.scale"], (values["d_model"] // values["attention.heads"]) ** -0.5)
    factor = {"head.scale": 1 / raw.get("logits_scaling", 1.0)} if head == "language_model" else {}
    return {**read_rope(raw, values, head), "attention.scale": scale, **factor}


def _written_granite(config: ModelConfig) -> dict[str, Any]:
    attention, scaling = config.attention, 1 / config.head.scale
    short = float(f"{scaling:.12g}")  # 1 / (1 / 13) is not quite 13
    return {
        **write_rope(config),
        "attention_multiplier": config.head_dim**-0.5 if attention.scale is None else attention.scale,
        "logits_scaling": short if 1 / short == config.head.scale else scaling,
    }


GRANITE_PRESET = {
    "vocab_size": 49155,
    "num_key_value_heads": 8,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
    "embedding_multiplier": 12.0,
    "residual_multiplier": 0.22,
    **dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), 0),
}
_granite_sizes = sizes(
    "hidden_size num_hidden_layers num_attention_heads intermediate_size attention_multiplier logits_scaling"
)
GRANITE = replace(
    LLAMA,
    model_type="granite",
    architectures=classes("Granite", "ForCausalLM", ("Model",)),
    fields={
        **LLAMA.fields,
        "attention_multiplier": ("attention.scale", 1.0),
        "embedding_multiplier": ("embedding.scale", 1.0),
        "residual_multiplier": ("residual_scale", 1.0),
        **special_tokens(bos=1, eos=2),
    },
    derived=_derived_granite,
    written=_written_granite,
    published={
        "granite-3.0-2b": _granite_sizes(2048, 40, 32, 8192, 0.015625, 8.0, **GRANITE_PRESET),
        "granite-3.0-8b": _granite_sizes(4096, 40, 32, 12800, 0.0078125, 16.0, **GRANITE_PRESET),
        "granite-3.3-8b": _granite_sizes(
            *(4096, 40, 32, 12800, 0.0078125, 16.0),
            **{**GRANITE_PRESET, "vocab_size": 49159, "max_position_embeddings": 131072, "rope_theta": 10_000_000.0},
        ),
    },
)


def _derived_smollm3(raw: Raw, values: Values, head: HeadKind) -> Values:
    """Layers without positions, which alone may have a window."""
    layers, interval = values["decoder_layers"], read_period(raw, "no_rope_layer_interval", 4)
    rotated = read_list(raw, "no_rope_layers", layers)
    if rotated is None:
        rotated = [(layer + 1) % interval for layer in range(layers)]
    unrotated = [not flag for flag in rotated]
    window = raw.get("sliding_window") if raw.get("use_sliding_window") else None
    types = read_layer_types(raw, layers, lambda layer: unrotated[layer] and window is not None)
    windowed = [name == LAYER_TYPES[1] for name in types]
    if windowed != [other and any(windowed) for other in unrotated]:
        raise UserError(
            "config.json: SmolLM3 is supported where all layers without positions (no_rope_layers), or none, are "
            "sliding_attention in layer_types."
        )
    own = window if any(windowed) else None
    others = OtherLayers.from_list(unrotated, window=own, position=PositionConfig(kind="none"))
    return {**read_rope(raw, values, head), "other_layers": others}


def _written_smollm3(config: ModelConfig) -> dict[str, Any]:
    others, window = config.others(config.decoder_layers), config.other_layers and config.other_layers.window
    return {
        **write_rope(config),
        "no_rope_layers": [int(other is None) for other in others],
        "use_sliding_window": window is not None,
        "sliding_window": window,
        "layer_types": [LAYER_TYPES[other is not None and window is not None] for other in others],
    }


SMOLLM3 = replace(
    LLAMA,
    model_type="smollm3",
    architectures=classes("SmolLM3", "ForCausalLM"),
    fields=fields_of(
        LLAMA.fields,
        special_tokens(bos=128_000, eos=128_001, pad=128_004),
        **GROUPED_SIZES(2048, 36, 16, 4, 11008, vocab_size=128_256, max_position_embeddings=32768),
        rope_theta=2_000_000.0,
        tie_word_embeddings=True,
    ),
    derived=_derived_smollm3,
    written=_written_smollm3,
    published={
        "smollm3-3b": GROUPED_SIZES(
            2048, 36, 16, 4, 11008, rope_theta=5_000_000.0, max_position_embeddings=65536, eos_token_id=128_012
        )
    },
)
FAMILIES = [LLAMA, _MISTRAL, _QWEN2, QWEN3]
