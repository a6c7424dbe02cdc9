"""Granite 3 (IBM 2024): LLaMA with four multipliers, as maximal update parametrization asks (Yang et al. 2022)."""

from dataclasses import replace
from typing import Any

from anyformer.config import HeadKind, ModelConfig
from anyformer.families.base import Raw, Values, classes, none_if_default, sizes, special_tokens
from anyformer.families.llama import LLAMA, read_rope, write_rope


def _derived(raw: Raw, values: Values, head: HeadKind) -> Values:
    scale = none_if_default(values["attention.scale"], (values["d_model"] // values["attention.heads"]) ** -0.5)
    factor = {"head.scale": 1 / raw.get("logits_scaling", 1.0)} if head == "language_model" else {}
    return {**read_rope(raw, values, head), "attention.scale": scale, **factor}


def _written(config: ModelConfig) -> dict[str, Any]:
    attention, scaling = config.attention, 1 / config.head.scale
    head_dim = attention.head_dim or config.d_model // attention.heads
    short = float(f"{scaling:.12g}")  # 1 / (1 / 13) is not quite 13
    return {
        **write_rope(config),
        "attention_multiplier": head_dim**-0.5 if attention.scale is None else attention.scale,
        "logits_scaling": short if 1 / short == config.head.scale else scaling,
    }


_GRANITE = {
    "vocab_size": 49155,
    "num_key_value_heads": 8,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
    "embedding_multiplier": 12.0,
    "residual_multiplier": 0.22,
    **dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), 0),
}
_sizes = sizes(
    "hidden_size num_hidden_layers num_attention_heads intermediate_size attention_multiplier logits_scaling"
)
FAMILY = replace(
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
    derived=_derived,
    written=_written,
    published={
        "granite-3.0-2b": _sizes(2048, 40, 32, 8192, 0.015625, 8.0, **_GRANITE),
        "granite-3.0-8b": _sizes(4096, 40, 32, 12800, 0.0078125, 16.0, **_GRANITE),
        "granite-3.3-8b": _sizes(
            *(4096, 40, 32, 12800, 0.0078125, 16.0),
            **{**_GRANITE, "vocab_size": 49159, "max_position_embeddings": 131072, "rope_theta": 10_000_000.0},
        ),
    },
)
