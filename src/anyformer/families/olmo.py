"""OLMo 2 (OLMo Team 2025, 2501.00656), section 2: LLaMA with norms on the branches alone, and on all queries and keys;
OLMo 3 (OLMo Team 2025): a window in three layers of four.
"""

from dataclasses import replace
from typing import Any

from anyformer.config import HeadKind, ModelConfig
from anyformer.families.base import GROUPED_SIZES, Raw, Values, classes, fields_of, special_tokens
from anyformer.families.llama import BIAS, FIELDS, LAYER, LLAMA, decoder_rows
from anyformer.families.rotary import (
    read_layer_types,
    read_layers,
    write_ropes,
    write_windows,
    yarn,
)


def _derived(raw: Raw, values: Values, head: HeadKind) -> Values:
    window = raw.get("sliding_window", 4096)
    types = read_layer_types(raw, values["decoder_layers"], lambda layer: (layer + 1) % 4 != 0)
    # An older file's theta is that of the layers without a window alone.
    return read_layers(raw, values, head, types, window, (raw.get("rope_theta", 500_000.0), 500_000.0))


def _written(config: ModelConfig) -> dict[str, Any]:
    return {**write_ropes(config), **write_windows(config)}


_LAYER = {
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
    rows=decoder_rows(_LAYER),
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
    derived=_derived,
    written=_written,
    published={
        "olmo-3-7b": GROUPED_SIZES(4096, 32, 32, 32, 11008, **_OLMO3_PRESET),
        "olmo-3-32b": GROUPED_SIZES(5120, 64, 40, 8, 27648, **_OLMO3_PRESET),
    },
)
FAMILIES = [_OLMO2, _OLMO3]
