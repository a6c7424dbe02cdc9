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
    Raw,
    activation,
    none_if_default,
    special_tokens,
    their_activation,
    their_special_tokens,
)
from anyformer.families.rows import alias, linear, row

_DEFAULTS: dict[str, dict[str, Any]] = {
    "llama": {"bos_token_id": 1, "eos_token_id": 2},
    "mistral": {"bos_token_id": 1, "eos_token_id": 2, "num_key_value_heads": 8, "intermediate_size": 14336},
    "qwen2": {"vocab_size": 151936, "intermediate_size": 22016, "num_key_value_heads": 32},
    "qwen3": {"vocab_size": 151936, "intermediate_size": 22016, "num_key_value_heads": 32, "head_dim": 128},
}
_LENGTHS = {"llama": 2048, "mistral": 131072, "qwen2": 32768, "qwen3": 32768}


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


def _read(traits: _Traits, given: Raw, head: HeadKind) -> ModelConfig:
    raw = {**_DEFAULTS[traits.model_type], **given}
    layers, heads = raw.get("num_hidden_layers", 32), raw.get("num_attention_heads", 32)
    max_length = raw.get("max_position_embeddings", _LENGTHS[traits.model_type])
    return ModelConfig(
        vocab_size=raw.get("vocab_size", 32000),
        d_model=raw.get("hidden_size", 4096),
        decoder_layers=layers,
        max_length=max_length,
        attention=AttentionConfig(
            heads=heads,
            kv_heads=none_if_default(raw.get("num_key_value_heads"), heads),
            head_dim=none_if_default(raw.get("head_dim"), raw.get("hidden_size", 4096) / heads),
            dropout=raw.get("attention_dropout", 0.0),
            **traits.attention(raw, layers),
        ),
        feed_forward=FeedForwardConfig(
            width=raw.get("intermediate_size", 11008),
            activation=activation(raw.get("hidden_act", "silu")),
            gated=True,
            bias=raw.get("mlp_bias", False),
        ),
        position=rope.read(raw, max_length),
        norm=NormConfig(kind="rms", eps=raw.get("rms_norm_eps", 1e-6), placement="pre"),
        embedding=EmbeddingConfig(tied=raw.get("tie_word_embeddings", False), padding=raw.get("pad_token_id")),
        head=HeadConfig(kind=head),
        init=InitConfig(kind="normal", std=raw.get("initializer_range", 0.02)),
        special_tokens=special_tokens(raw, {}),
        model_type=traits.model_type,
    )


def _write(traits: _Traits, config: ModelConfig) -> dict[str, Any]:
    attention = config.attention
    written: dict[str, Any] = {
        "vocab_size": config.vocab_size,
        "hidden_size": config.d_model,
        "num_hidden_layers": config.decoder_layers,
        "max_position_embeddings": config.max_length,
        "num_attention_heads": attention.heads,
        "num_key_value_heads": attention.kv_heads or attention.heads,
        "head_dim": attention.head_dim or config.d_model // attention.heads,
        "attention_dropout": attention.dropout,
        "intermediate_size": config.feed_forward.width,
        "hidden_act": their_activation(config.feed_forward.activation),
        "rms_norm_eps": config.norm.eps,
        "tie_word_embeddings": config.embedding.tied,
        "initializer_range": config.init.std,
        **rope.write(config.position),
        **their_special_tokens(config.special_tokens),
        **traits.written(attention, config.decoder_layers),
    }
    if traits.model_type == "llama":
        written["mlp_bias"] = config.feed_forward.bias
    return written


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
