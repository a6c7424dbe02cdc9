"""LLaMA and its kin: Touvron et al. 2023 (2302.13971), section 2.2; LLaMA 3 (2407.21783), section 3.2;
Mistral 7B (2310.06825), section 2; Qwen2 (2407.10671), section 2.2; Qwen3 (2505.09388), section 2.

One translation serves all four model types: they differ in biases, windows and norms on queries and keys.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from anyformer.config import (
    AttentionConfig,
    EmbeddingConfig,
    FeedForwardConfig,
    HeadConfig,
    HeadKind,
    InitConfig,
    ModelConfig,
    NormConfig,
)
from anyformer.errors import UserError
from anyformer.families import rope
from anyformer.families.base import (
    Family,
    Fields,
    Raw,
    none_if_default,
    read_fields,
    special_tokens,
    their_special_tokens,
    write_fields,
)
from anyformer.families.rows import alias, linear, row

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
    },
    "qwen2": _QWEN,
    "qwen3": {**_QWEN, "head_dim": 128},
}
"""What a config.json of each type means where it leaves a field out, if that is not as in `_FIELDS`."""


@dataclass(frozen=True)
class _Traits:
    """Where the four part ways."""

    model_type: str
    attention: Callable[[Raw, int], dict[str, Any]]
    """The fields of AttentionConfig that config.json (with this many layers) decides in this type's own way."""
    written: Callable[[AttentionConfig, int], dict[str, Any]]


def _llama_attention(raw: Raw, layers: int) -> dict[str, Any]:
    bias = raw.get("attention_bias", False)
    return {"bias": bias, "output_bias": bias}


def _mistral_attention(raw: Raw, layers: int) -> dict[str, Any]:
    return {"bias": False, "output_bias": False, "window": raw.get("sliding_window", 4096)}


def _qwen2_attention(raw: Raw, layers: int) -> dict[str, Any]:
    return {"bias": True, "output_bias": False, **_qwen_window(raw, layers)}


def _qwen3_attention(raw: Raw, layers: int) -> dict[str, Any]:
    return {**_llama_attention(raw, layers), "qk_norm": True, **_qwen_window(raw, layers)}


def _qwen_window(raw: Raw, layers: int) -> dict[str, Any]:
    """Qwen puts a window on the upper layers, if any; newer files list the layers one by one."""
    if not raw.get("use_sliding_window", False) or raw.get("sliding_window", 4096) is None:
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
    return {"window": raw.get("sliding_window", 4096), "window_from": first} if first < layers else {}


def _their_qwen_window(attention: AttentionConfig, layers: int) -> dict[str, Any]:
    windowed = attention.window is not None
    first = attention.window_from if windowed else layers
    return {
        "use_sliding_window": windowed,
        "sliding_window": attention.window,
        "max_window_layers": first,
        "layer_types": ["full_attention"] * first + ["sliding_attention"] * (layers - first),
    }


_TRAITS = [
    _Traits("llama", _llama_attention, lambda attention, _: {"attention_bias": attention.bias}),
    _Traits("mistral", _mistral_attention, lambda attention, _: {"sliding_window": attention.window}),
    _Traits("qwen2", _qwen2_attention, _their_qwen_window),
    _Traits(
        "qwen3",
        _qwen3_attention,
        lambda attention, layers: {"attention_bias": attention.bias, **_their_qwen_window(attention, layers)},
    ),
]


def _read(traits: _Traits, config_json: Raw, head: HeadKind) -> ModelConfig:
    raw = {**_DEFAULTS[traits.model_type], **config_json}
    given = read_fields(raw, _FIELDS)
    layers, heads = given[""]["decoder_layers"], given["attention"]["heads"]
    return ModelConfig(
        **given[""],
        attention=AttentionConfig(
            kv_heads=none_if_default(raw.get("num_key_value_heads"), heads),
            head_dim=none_if_default(raw.get("head_dim"), given[""]["d_model"] / heads),
            **given["attention"],
            **traits.attention(raw, layers),
        ),
        feed_forward=FeedForwardConfig(gated=True, bias=raw.get("mlp_bias", False), **given["feed_forward"]),
        position=rope.read(raw, given[""]["max_length"]),
        norm=NormConfig(kind="rms", placement="pre", **given["norm"]),
        embedding=EmbeddingConfig(padding=raw.get("pad_token_id"), **given["embedding"]),
        head=HeadConfig(kind=head),
        init=InitConfig(kind="normal", **given["init"]),
        special_tokens=special_tokens(raw, {}),
        model_type=traits.model_type,
    )


def _write(traits: _Traits, config: ModelConfig) -> dict[str, Any]:
    attention = config.attention
    return {
        **write_fields(config, _FIELDS),
        "num_key_value_heads": attention.kv_heads or attention.heads,
        "head_dim": attention.head_dim or config.d_model // attention.heads,
        **rope.write(config.position),
        **their_special_tokens(config.special_tokens),
        **traits.written(attention, config.decoder_layers),
        **({"mlp_bias": config.feed_forward.bias} if traits.model_type == "llama" else {}),
    }


_ATTENTION = "decoder.blocks.{i}.attention"
_FEED_FORWARD = "decoder.blocks.{i}.feed_forward"

ROWS = [
    row("model.embed_tokens.weight", "token_embedding.table.weight"),
    *linear("model.layers.{i}.input_layernorm", "decoder.blocks.{i}.attention_norm"),
    *linear("model.layers.{i}.self_attn.q_proj", f"{_ATTENTION}.query"),
    *linear("model.layers.{i}.self_attn.k_proj", f"{_ATTENTION}.key"),
    *linear("model.layers.{i}.self_attn.v_proj", f"{_ATTENTION}.value"),
    *linear("model.layers.{i}.self_attn.o_proj", f"{_ATTENTION}.output"),
    *linear("model.layers.{i}.self_attn.q_norm", f"{_ATTENTION}.query_norm"),
    *linear("model.layers.{i}.self_attn.k_norm", f"{_ATTENTION}.key_norm"),
    *linear("model.layers.{i}.post_attention_layernorm", "decoder.blocks.{i}.feed_forward_norm"),
    *linear("model.layers.{i}.mlp.gate_proj", f"{_FEED_FORWARD}.gate"),
    *linear("model.layers.{i}.mlp.up_proj", f"{_FEED_FORWARD}.up"),
    *linear("model.layers.{i}.mlp.down_proj", f"{_FEED_FORWARD}.down"),
    *linear("model.norm", "decoder.final_norm"),
    row("lm_head.weight", "head.projection.weight"),
    alias("lm_head.weight", "token_embedding.table.weight"),
]

_CLASSES = {"llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen2", "qwen3": "Qwen3"}

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


_PRESETS: dict[str, Mapping[str, dict[str, Any]]] = {
    "llama": {
        "llama-3.2-1b": _llama3(32.0, **_sizes(2048, 16, 32, 8192), head_dim=64, tie_word_embeddings=True),
        "llama-3.2-3b": _llama3(32.0, **_sizes(3072, 28, 24, 8192), head_dim=128, tie_word_embeddings=True),
        "llama-3.1-8b": _llama3(8.0, **_sizes(4096, 32, 32, 14336)),
        "llama-2-7b": _sizes(4096, 32, 32, 11008, max_position_embeddings=4096, rms_norm_eps=1e-5),
        "tinyllama-1.1b": _sizes(2048, 22, 32, 5632, num_key_value_heads=4, rms_norm_eps=1e-5),
        "smollm2-135m": _sizes(
            576,
            30,
            9,
            1536,
            num_key_value_heads=3,
            vocab_size=49152,
            max_position_embeddings=8192,
            rope_theta=100_000.0,
            rms_norm_eps=1e-5,
            tie_word_embeddings=True,
            initializer_range=0.041666666666666664,
            bos_token_id=0,
            eos_token_id=0,
        ),
        # What `anyformer train` trains when nothing else is asked for: in two minutes on two cores, many steps of a
        # small model teach more than few of a wide one. It starts at 1 / sqrt(d_model); 0.02 is made for wide models.
        "llama-nano": _sizes(
            128,
            4,
            4,
            384,
            vocab_size=2048,
            max_position_embeddings=128,
            tie_word_embeddings=True,
            initializer_range=0.09,
            bos_token_id=None,
            eos_token_id=None,
        ),
    },
    "mistral": {
        "mistral-7b": _sizes(4096, 32, 32, 14336, max_position_embeddings=32768, rms_norm_eps=1e-5),
    },
    "qwen2": {
        "qwen2.5-0.5b": _sizes(
            896,
            24,
            14,
            4864,
            num_key_value_heads=2,
            rope_theta=1_000_000.0,
            tie_word_embeddings=True,
            bos_token_id=151643,
            eos_token_id=151643,
        ),
    },
    "qwen3": {
        "qwen3-0.6b": _sizes(
            1024,
            28,
            16,
            3072,
            num_key_value_heads=8,
            max_position_embeddings=40960,
            rope_theta=1_000_000.0,
            tie_word_embeddings=True,
            bos_token_id=151643,
            eos_token_id=151645,
        ),
    },
}


def _family(traits: _Traits) -> Family:
    name = _CLASSES[traits.model_type]
    return Family(
        model_type=traits.model_type,
        architectures={f"{name}ForCausalLM": "language_model", f"{name}Model": "none"},
        read=lambda raw, head: _read(traits, raw, head),
        write=lambda config: _write(traits, config),
        rows=ROWS,
        prefix="model.",
        ignored=(r"(model\.)?layers\.\d+\.self_attn\.rotary_emb\.inv_freq",),
        presets={
            preset: _read(traits, fields, "language_model") for preset, fields in _PRESETS[traits.model_type].items()
        },
    )


FAMILIES = [_family(traits) for traits in _TRAITS]
