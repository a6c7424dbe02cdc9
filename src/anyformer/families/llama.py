"""LLaMA and its kin: Touvron et al. 2023 (2302.13971), section 2.2; LLaMA 3 (2407.21783), section 3.2;
Mistral 7B (2310.06825), section 2; Qwen2 (2407.10671), section 2.2; Qwen3 (2505.09388), section 2.

One translation serves all four model types: they differ in biases, windows and norms on queries and keys.
"""

import math
from functools import partial
from typing import Any

from anyformer.config import HeadKind, ModelConfig, PositionConfig, RotaryScaling
from anyformer.errors import UserError, quote
from anyformer.families.base import (
    Family,
    Fields,
    Raw,
    make_config,
    none_if_default,
    read_decoder_head,
    read_fields,
    write_decoder_head,
    write_fields,
)
from anyformer.families.rows import alias, linear, linears, row


def read_rope(raw: Raw, max_length: int) -> dict[str, Any]:
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


def write_rope(position: PositionConfig) -> dict[str, Any]:
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


_FIELDS: Fields = {
    "vocab_size": ("vocab_size", 32000),
    "hidden_size": ("d_model", 4096),
    "num_hidden_layers": ("decoder_layers", 32),
    "max_position_embeddings": ("max_length", 2048),
    "num_attention_heads": ("attention.heads", 32),
    "attention_dropout": ("attention.dropout", 0.0),
    "intermediate_size": ("feed_forward.width", 11008),
    "hidden_act": ("feed_forward.activation", "silu"),
    "rms_norm_eps": ("norm.eps", 1e-6),
    "tie_word_embeddings": ("embedding.tied", False),
    "initializer_range": ("init.std", 0.02),
}
_QWEN = {"vocab_size": 151936, "intermediate_size": 22016, "num_key_value_heads": 32, "max_position_embeddings": 32768}
_DEFAULTS: dict[str, dict[str, Any]] = {
    "llama": {"bos_token_id": 1, "eos_token_id": 2},
    "mistral": {
        "bos_token_id": 1,
        "eos_token_id": 2,
        "num_key_value_heads": 8,
        "intermediate_size": 14336,
        "max_position_embeddings": 131072,
        "sliding_window": 4096,
    },
    "qwen2": _QWEN,
    "qwen3": {**_QWEN, "head_dim": 128},
}
"""Defaults of a config.json of each type, where they are not those of `_FIELDS`."""


def _read(config_json: Raw, head: HeadKind, model_type: str) -> ModelConfig:
    raw = {**_DEFAULTS[model_type], **config_json}
    given = read_fields(raw, _FIELDS, {})
    heads, max_length = given["attention"]["heads"], given[""]["max_length"]
    bias = {"mistral": False, "qwen2": True}.get(model_type, raw.get("attention_bias") or False)
    return make_config(
        given,
        model_type,
        attention={
            "kv_heads": none_if_default(raw.get("num_key_value_heads"), heads),
            "head_dim": none_if_default(raw.get("head_dim"), given[""]["d_model"] / heads),
            "bias": bias,
            "output_bias": bias and model_type != "qwen2",
            "qk_norm": model_type == "qwen3",
            **_window(raw, given[""]["decoder_layers"], model_type),
        },
        feed_forward={"gated": True, "bias": raw.get("mlp_bias") or False},
        position=read_rope(raw, max_length),
        norm={"kind": "rms", "placement": "pre"},
        embedding={"padding": raw.get("pad_token_id")},
        head=read_decoder_head(raw, head),
        init={"kind": "normal"},
    )


def _window(raw: Raw, layers: int, model_type: str) -> dict[str, Any]:
    """Mistral's window is on every layer, Qwen's on the upper ones, which newer files list one by one."""
    if model_type == "mistral":
        return {"window": raw["sliding_window"]}
    window = raw.get("sliding_window", 4096)
    if model_type == "llama" or not raw.get("use_sliding_window", False) or window is None:
        return {}
    types: list[str] | None = raw.get("layer_types")
    if types is None:
        first = min(raw.get("max_window_layers", 28), layers)
    else:
        first = types.index("sliding_attention") if "sliding_attention" in types else layers
        if types[first:] != ["sliding_attention"] * (layers - first):
            raise UserError(
                "config.json: layer_types must have all sliding_attention layers above the full_attention ones."
            )
    return {"window": window, "window_from": first} if first < layers else {}


def _write(config: ModelConfig, model_type: str) -> dict[str, Any]:
    attention, layers, own = config.attention, config.decoder_layers, dict[str, Any]()
    if model_type == "llama":
        own["mlp_bias"] = config.feed_forward.bias
    if model_type in ("llama", "qwen3"):
        own["attention_bias"] = attention.bias
    if model_type != "llama":
        own["sliding_window"] = attention.window
    if model_type in ("qwen2", "qwen3"):
        first = layers if attention.window is None else attention.window_from
        own["use_sliding_window"] = attention.window is not None
        own["max_window_layers"] = first
        own["layer_types"] = ["full_attention"] * first + ["sliding_attention"] * (layers - first)
    return {
        **write_fields(config, _FIELDS),
        "num_key_value_heads": attention.kv_heads or attention.heads,
        "head_dim": attention.head_dim or config.d_model // attention.heads,
        **write_rope(config.position),
        **write_decoder_head(config.head),
        **own,
    }


_LAYER = {
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
ROWS = [
    row("model.embed_tokens.weight", "token_embedding.table.weight"),
    *linears("model.layers.{i}.", "decoder.blocks.{i}.", _LAYER),
    *linear("model.norm", "decoder.final_norm"),
    row("lm_head.weight", "head.projection.weight"),
    alias("lm_head.weight", "token_embedding.table.weight"),
    *linear("score", "head.labels"),
]

_LLAMA3 = {
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "bos_token_id": 128000,
    "eos_token_id": 128001,
}


def _llama3(factor: float, **fields: Any) -> dict[str, Any]:
    scaling = {"rope_type": "llama3", "factor": factor, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    rope_scaling = {**scaling, "original_max_position_embeddings": 8192}
    return {**_LLAMA3, "rope_theta": 500_000.0, "rope_scaling": rope_scaling, "num_key_value_heads": 8, **fields}


def _sizes(hidden: int, layers: int, heads: int, width: int, **fields: Any) -> dict[str, Any]:
    shape = {"hidden_size": hidden, "num_hidden_layers": layers, "num_attention_heads": heads}
    return {**shape, "intermediate_size": width, **fields}


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
_NANO = {
    "vocab_size": 2048,
    "max_position_embeddings": 128,
    "initializer_range": 0.09,
    "bos_token_id": None,
    "eos_token_id": None,
    **_TIED,
}
_LLAMA2 = {"max_position_embeddings": 4096, "rms_norm_eps": 1e-5}
_MISTRAL = {"max_position_embeddings": 32768, "rms_norm_eps": 1e-5}
_QWEN2_5 = {"rope_theta": 1_000_000.0, "bos_token_id": 151643, "eos_token_id": 151643, **_TIED}
_QWEN3 = {**_QWEN2_5, "max_position_embeddings": 40960, "eos_token_id": 151645}


def _family(model_type: str, name: str, presets: dict[str, Raw]) -> Family:
    return Family(
        model_type=model_type,
        architectures={
            f"{name}ForCausalLM": "language_model",
            f"{name}Model": "none",
            f"{name}ForSequenceClassification": "classification",
            f"{name}ForTokenClassification": "token_classification",
        },
        read=partial(_read, model_type=model_type),
        write=partial(_write, model_type=model_type),
        rows=ROWS,
        prefix="model.",
        ignored=(r"(model\.)?layers\.\d+\.self_attn\.rotary_emb\.inv_freq",),
        presets={preset: _read(fields, "language_model", model_type) for preset, fields in presets.items()},
    )


_LLAMA_PRESETS: dict[str, Raw] = {
    "llama-3.2-1b": _llama3(32.0, **_sizes(2048, 16, 32, 8192), head_dim=64, **_TIED),
    "llama-3.2-3b": _llama3(32.0, **_sizes(3072, 28, 24, 8192), head_dim=128, **_TIED),
    "llama-3.1-8b": _llama3(8.0, **_sizes(4096, 32, 32, 14336)),
    "llama-2-7b": _sizes(4096, 32, 32, 11008, **_LLAMA2),
    "tinyllama-1.1b": _sizes(2048, 22, 32, 5632, num_key_value_heads=4, rms_norm_eps=1e-5),
    "smollm2-135m": _sizes(576, 30, 9, 1536, **_SMOLLM2),
    "llama-nano": _sizes(128, 4, 4, 384, **_NANO),
}
FAMILIES = [
    _family("llama", "Llama", _LLAMA_PRESETS),
    _family("mistral", "Mistral", {"mistral-7b": _sizes(4096, 32, 32, 14336, **_MISTRAL)}),
    _family("qwen2", "Qwen2", {"qwen2.5-0.5b": _sizes(896, 24, 14, 4864, num_key_value_heads=2, **_QWEN2_5)}),
    _family("qwen3", "Qwen3", {"qwen3-0.6b": _sizes(1024, 28, 16, 3072, num_key_value_heads=8, **_QWEN3)}),
]
