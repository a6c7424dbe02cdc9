"""SmolLM3 (Hugging Face 2025): LLaMA without positions in every fourth layer (Yang et al. 2025, 2501.18795)."""

from dataclasses import replace
from typing import Any

from anyformer.config import HeadKind, ModelConfig, OtherLayers, PositionConfig
from anyformer.errors import UserError
from anyformer.families.base import Raw, Values, classes, sizes, special_tokens
from anyformer.families.llama import LAYER_TYPES, LLAMA, read_layer_types, read_list, read_period, read_rope, write_rope


def _derived(raw: Raw, values: Values, head: HeadKind) -> Values:
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


def _written(config: ModelConfig) -> dict[str, Any]:
    others, window = config.others(config.decoder_layers), config.other_layers and config.other_layers.window
    return {
        **write_rope(config),
        "no_rope_layers": [int(other is None) for other in others],
        "use_sliding_window": window is not None,
        "sliding_window": window,
        "layer_types": [LAYER_TYPES[other is not None and window is not None] for other in others],
    }


_sizes = sizes("hidden_size num_hidden_layers num_attention_heads num_key_value_heads intermediate_size")
FAMILY = replace(
    LLAMA,
    model_type="smollm3",
    architectures=classes("SmolLM3", "ForCausalLM"),
    fields={
        **LLAMA.fields,
        "vocab_size": ("vocab_size", 128_256),
        "hidden_size": ("d_model", 2048),
        "num_hidden_layers": ("decoder_layers", 36),
        "max_position_embeddings": ("max_length", 32768),
        "num_attention_heads": ("attention.heads", 16),
        "num_key_value_heads": ("attention.kv_heads", 4),
        "rope_theta": ("position.theta", 2_000_000.0),
        "tie_word_embeddings": ("embedding.tied", True),
        **special_tokens(bos=128_000, eos=128_001, pad=128_004),
    },
    derived=_derived,
    written=_written,
    published={
        "smollm3-3b": _sizes(
            2048, 36, 16, 4, 11008, rope_theta=5_000_000.0, max_position_embeddings=65536, eos_token_id=128_012
        )
    },
)
