"""LLaMA and its kin: Touvron et al. 2023 (2302.13971), section 2.2; LLaMA 3 (2407.21783), section 3.2;
Mistral 7B (2310.06825), section 2; Qwen2 (2407.10671), section 2.2; Qwen3 (2505.09388), section 2.

They differ in biases, windows and norms on queries and keys.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

from anyformer.config import HeadKind, ModelConfig, OtherLayers
from anyformer.errors import UserError, quote
from anyformer.families.base import Family, Fields, Raw, Values, classes, sizes, special_tokens
from anyformer.families.rows import Row, linear, linears, row, tied

_ROPE = {
    "linear": {},
    "dynamic": {},
    "llama3": {"low_frequency": "low_freq_factor", "high_frequency": "high_freq_factor"},
    "yarn": {"beta_fast": "beta_fast", "beta_slow": "beta_slow", "truncate": "truncate"},
    "longrope": {"short_factor": "short_factor", "long_factor": "long_factor"},
}
"""Kinds of scaling: fields of RotaryScaling and their names in a config.json."""
ORIGINAL, _PARTIAL = "original_max_position_embeddings", "partial_rotary_factor"


def read_rope(raw: Raw, values: Values, head: HeadKind) -> Values:
    """Rotary positions. Raises UserError for a scaling that is not known."""
    rope: Raw = raw.get("rope_scaling") or raw.get("rope_parameters") or {}
    kind = rope.get("rope_type") or rope.get("type") or "default"
    theta = float(rope.get("rope_theta") or values["position.theta"] or 10_000.0)
    position: Values = {"position.theta": theta}
    if "position.rotary_fraction" in values:
        position["position.rotary_fraction"] = rope.get(_PARTIAL) or values["position.rotary_fraction"]
    if kind == "default":
        return position
    if kind not in _ROPE:
        raise UserError(
            f"config.json: the rope scaling {quote(kind)} is none of linear, dynamic, llama3, yarn and longrope."
        )
    scaling: dict[str, Any] = {"kind": kind, "factor": rope.get("factor")}
    if kind in ("llama3", "yarn", "longrope"):
        scaling["original_length"] = raw.get(ORIGINAL) or rope.get(ORIGINAL) or values["max_length"]
        scaling["factor"] = scaling["factor"] or values["max_length"] / scaling["original_length"]
    if kind == "llama3":
        scaling |= {ours: rope[theirs] for ours, theirs in _ROPE[kind].items()}
    elif kind == "yarn":
        scaling |= {name: rope[name] for name in _ROPE[kind] if rope.get(name) is not None}
        scaling["attention_factor"] = _attention_factor(rope, scaling["factor"])
    elif kind == "longrope":
        if missing := [name for name in _ROPE[kind] if not rope.get(name)]:
            raise UserError(f"config.json: longrope scaling has no {missing[0]}.")
        scaling |= {name: tuple(rope[name]) for name in _ROPE[kind]}
        scaling["attention_factor"] = rope.get("attention_factor")
    return {**position, "position.scaling": scaling}


def _attention_factor(rope: Raw, factor: float) -> float | None:
    """YaRN's factor on cosines and sines where it is given, or follows from DeepSeek's two mscales."""
    mscale, mscale_all_dim = rope.get("mscale"), rope.get("mscale_all_dim")
    if rope.get("attention_factor") is not None or not (mscale and mscale_all_dim):
        return rope.get("attention_factor")
    logarithm = 0.1 * math.log(max(factor, 1.0))
    return (mscale * logarithm + 1) / (mscale_all_dim * logarithm + 1)


def write_rope(config: ModelConfig) -> dict[str, Any]:
    """Rotary positions in both forms, so that older readers understand them as well."""
    scaling, theta, fraction = config.position.scaling, config.position.theta, config.position.rotary_fraction
    partial = {} if fraction == 1.0 else {_PARTIAL: fraction}
    if scaling is None:
        return {"rope_scaling": None, "rope_parameters": {"rope_type": "default", "rope_theta": theta, **partial}}
    rope: dict[str, Any] = {"rope_type": scaling.kind, "rope_theta": theta, "factor": scaling.factor, **partial}
    optional: dict[str, float | None] = {ORIGINAL: scaling.original_length}
    if scaling.kind in ("yarn", "longrope"):
        optional["attention_factor"] = scaling.attention_factor
    rope |= {name: value for name, value in optional.items() if value is not None}
    ours = {theirs: getattr(scaling, name) for name, theirs in _ROPE[scaling.kind].items()}
    rope |= {name: list(value) if isinstance(value, tuple) else value for name, value in ours.items()}
    return {"rope_scaling": rope, "rope_parameters": rope}


def _derived_qwen(raw: Raw, values: Values, head: HeadKind) -> Values:
    """Rotary positions, and the window on the upper layers, which newer files list one by one."""
    rope, layers, window = read_rope(raw, values, head), values["decoder_layers"], raw.get("sliding_window", 4096)
    types = read_layer_types(raw, layers, lambda layer: layer >= raw.get("max_window_layers", 28))
    if not raw.get("use_sliding_window", False) or window is None:
        return rope
    return rope | layers_with_window(types, window)


LAYER_TYPES = ("full_attention", "sliding_attention")
"""Names of layers without and with a window in `layer_types`."""


def read_layer_types(raw: Raw, layers: int, has_window: Callable[[int], bool]) -> list[str]:
    """The type of each layer in `layer_types`, or by a family's rule where config.json doesn't list them.

    Raises UserError for a list of another length, or a type that is not known.
    """
    types = read_list(raw, "layer_types", layers)
    if types is None:
        return [LAYER_TYPES[has_window(layer)] for layer in range(layers)]
    for name in types:
        if name not in LAYER_TYPES:
            known = " and ".join(LAYER_TYPES)
            raise UserError(f"config.json: the layer type {quote(name)} is not supported ({known} are).")
    return types


def read_list(raw: Raw, name: str, layers: int) -> list[Any] | None:
    """A field of config.json with an entry for each layer. Raises UserError for a list of another length."""
    entries: Any = raw.get(name)
    if entries is None:
        return None
    if not isinstance(entries, list | tuple):
        raise UserError(f"config.json: {name} is a list with an entry for each layer, not {quote(entries)}.")
    listed = [*cast("Sequence[Any]", entries)]
    if len(listed) != layers:
        raise UserError(f"config.json: {name} has {len(listed)} entries for {layers} layers.")
    return listed


def read_period(raw: Raw, name: str, default: int) -> int:
    """A field of config.json that says how many layers there are to one of a kind. Raises UserError where it is 0."""
    given: Any = raw.get(name)
    period = default if given is None else given
    if not isinstance(period, int) or period < 1:
        raise UserError(f"config.json: {name} is a number of layers, at least 1, not {quote(period)}.")
    return period


def layers_with_window(types: Sequence[str], window: int | None, **fields: Any) -> Values:
    """The layers whose type has a window, and whatever else they have of their own."""
    others = OtherLayers.from_list([name == LAYER_TYPES[1] for name in types], window=window, **fields)
    if others is not None and not fields and "." not in others.first + others.then:
        return {"attention.window": window}
    return {"other_layers": others}


def write_layer_types(config: ModelConfig) -> list[str]:
    """The inverse of `layers_with_window`."""
    layers = config.decoder_layers or config.encoder_layers
    if config.other_layers is None:
        return [LAYER_TYPES[config.attention.window is not None]] * layers
    return [LAYER_TYPES[other is not None] for other in config.others(layers)]


def _written_qwen(config: ModelConfig) -> dict[str, Any]:
    types = write_layer_types(config)
    windows = [config.attention.window, config.other_layers and config.other_layers.window]
    return {
        **write_rope(config),
        "sliding_window": next((window for window in windows if window is not None), None),
        "use_sliding_window": LAYER_TYPES[1] in types,
        "max_window_layers": [*types, LAYER_TYPES[1]].index(LAYER_TYPES[1]),
        "layer_types": types,
    }


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


def decoder_rows(layer: Mapping[str, str]) -> list[Row]:
    """The table of a decoder that files call `model`, whose layers have these parts."""
    return [
        row("model.embed_tokens.weight", "token_embedding.table.weight"),
        *linears("model.layers.{i}.", "decoder.blocks.{i}.", layer),
        *linear("model.norm", "decoder.final_norm"),
        *tied("lm_head"),
        *linear("score", "head.labels"),
    ]


_LLAMA3 = {"vocab_size": 128256, "max_position_embeddings": 131072, "bos_token_id": 128000, "eos_token_id": 128001}


def _llama3(factor: float, **fields: Any) -> Raw:
    scaling = {"rope_type": "llama3", "factor": factor, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    rope_scaling = {**scaling, "original_max_position_embeddings": 8192}
    rope = {"rope_theta": 500_000.0, "rope_scaling": rope_scaling}
    return {**_LLAMA3, **rope, "rms_norm_eps": 1e-5, "num_key_value_heads": 8, **fields}


_sizes = sizes("hidden_size num_hidden_layers num_attention_heads intermediate_size")
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
_NO_BIAS = {"attention.bias": False, "attention.output_bias": False}
LLAMA = Family(
    model_type="llama",
    architectures=classes("Llama", "ForCausalLM"),
    fields={**FIELDS, **BIAS, "mlp_bias": ("feed_forward.bias", False)},
    constants={"feed_forward.gated": True, "position.kind": "rotary", "norm.kind": "rms"},
    derived=read_rope,
    written=write_rope,
    rows=decoder_rows(LAYER),
    prefix="model.",
    ignored=(r"(model\.)?layers\.\d+\.self_attn\.rotary_emb\.inv_freq",),
    published={
        "llama-3.2-1b": _llama3(32.0, **_sizes(2048, 16, 32, 8192), head_dim=64, **_TIED),
        "llama-3.2-3b": _llama3(32.0, **_sizes(3072, 28, 24, 8192), head_dim=128, **_TIED),
        "llama-3.1-8b": _llama3(8.0, **_sizes(4096, 32, 32, 14336)),
        "llama-2-7b": _sizes(4096, 32, 32, 11008, max_position_embeddings=4096, rms_norm_eps=1e-5),
        "tinyllama-1.1b": _sizes(2048, 22, 32, 5632, num_key_value_heads=4, rms_norm_eps=1e-5),
        "smollm2-135m": _sizes(576, 30, 9, 1536, **_SMOLLM2),
        "llama-nano": _sizes(128, 4, 4, 384, **NANO),
    },
)
_MISTRAL = replace(
    LLAMA,
    model_type="mistral",
    architectures=classes("Mistral", "ForCausalLM"),
    fields={
        **FIELDS,
        "max_position_embeddings": ("max_length", 131072),
        "num_key_value_heads": ("attention.kv_heads", 8),
        "sliding_window": ("attention.window", 4096),
        "intermediate_size": ("feed_forward.width", 14336),
    },
    constants={**LLAMA.constants, **_NO_BIAS, "feed_forward.bias": False},
    published={"mistral-7b": _sizes(4096, 32, 32, 14336, max_position_embeddings=32768, rms_norm_eps=1e-5)},
)
_QWEN2 = replace(
    LLAMA,
    model_type="qwen2",
    architectures=classes("Qwen2", "ForCausalLM"),
    fields={
        **FIELDS,
        "vocab_size": ("vocab_size", 151936),
        "max_position_embeddings": ("max_length", 32768),
        "num_key_value_heads": ("attention.kv_heads", 32),
        "intermediate_size": ("feed_forward.width", 22016),
        **special_tokens(),
    },
    constants={**LLAMA.constants, "attention.output_bias": False, "feed_forward.bias": False},
    derived=_derived_qwen,
    written=_written_qwen,
    published={"qwen2.5-0.5b": _sizes(896, 24, 14, 4864, num_key_value_heads=2, **_QWEN2_5)},
)
_QWEN3 = replace(
    _QWEN2,
    model_type="qwen3",
    architectures=classes("Qwen3", "ForCausalLM"),
    fields={**_QWEN2.fields, **BIAS, "head_dim": ("attention.head_dim", 128)},
    constants={**LLAMA.constants, "attention.qk_norm": "head", "feed_forward.bias": False},
    published={"qwen3-0.6b": _sizes(1024, 28, 16, 3072, num_key_value_heads=8, **_QWEN3_PRESET)},
)
FAMILIES = [LLAMA, _MISTRAL, _QWEN2, _QWEN3]
