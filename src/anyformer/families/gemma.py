"""Gemma (Gemma Team 2024, 2403.08295): LLaMA with GELU, wide heads, scaled embeddings and norms of 1 + weight;
Gemma 2 (2408.00118), section 2: a window in every other layer, norms after the branches, bounded scores and logits;
Gemma 3 (2503.19786), section 2: norms of queries and keys in the place of the bounds, five layers with a window for one
without; EmbeddingGemma (2509.20354): Gemma 3 as an encoder.
"""

from dataclasses import replace
from typing import Any

from anyformer.config import HeadKind, ModelConfig
from anyformer.families.base import GROUPED_SIZES, Raw, Values, classes, fields_of, none_if_default, special_tokens
from anyformer.families.llama import BIAS, FIELDS, LAYER, LLAMA, NANO, decoder_rows
from anyformer.families.rotary import (
    layers_with_window,
    read_layer_types,
    read_layers,
    read_period,
    read_rope,
    write_rope,
    write_ropes,
    write_windows,
)
from anyformer.families.rows import linear, linears


def _derived(raw: Raw, values: Values, head: HeadKind) -> Values:
    # The first release said "gelu", and meant the approximation.
    legacy = {"feed_forward.activation": "gelu_tanh"} if raw.get("hidden_act") == "gelu" else {}
    return {**read_rope(raw, values, head), **legacy}


def _scale(raw: Raw, values: Values) -> Values:
    head_dim = values["attention.head_dim"] or values["d_model"] / values["attention.heads"]
    return {"attention.scale": none_if_default(raw.get("query_pre_attn_scalar", 256) ** -0.5, head_dim**-0.5)}


def _derived2(raw: Raw, values: Values, head: HeadKind) -> Values:
    types = read_layer_types(raw, values["decoder_layers"], lambda layer: layer % 2 == 0)
    windows = layers_with_window(types, raw.get("sliding_window", 4096))
    return {**read_rope(raw, values, head), **_scale(raw, values), **windows}


def _derived3(raw: Raw, values: Values, head: HeadKind) -> Values:
    layers, window = values["decoder_layers"], raw.get("sliding_window", 4096)
    period = read_period(raw, "sliding_window_pattern", 6)
    types = read_layer_types(raw, layers, lambda layer: (layer + 1) % period != 0)
    stacks: Values = {}
    if raw.get("use_bidirectional_attention"):
        stacks = {"encoder_layers": layers, "decoder_layers": 0}
        window = None if window is None else window // 2 + 1  # both sides are counted there, and one here
    thetas = raw.get("rope_theta", 1_000_000.0), raw.get("rope_local_base_freq", 10_000.0)
    return {**_scale(raw, values), **read_layers(raw, values, head, types, window, thetas), **stacks}


def _written2(config: ModelConfig) -> dict[str, Any]:
    return {**write_rope(config), **_written_layers(config)}


def _written3(config: ModelConfig) -> dict[str, Any]:
    layers = _written_layers(config)
    if config.is_encoder_only:
        layers |= {
            "num_hidden_layers": config.encoder_layers,
            "use_bidirectional_attention": True,
            "sliding_window": 2 * (layers["sliding_window"] - 1),
        }
    return {**write_ropes(config), **layers}


def _written_layers(config: ModelConfig) -> dict[str, Any]:
    scale = config.attention.scale
    return {"query_pre_attn_scalar": config.head_dim if scale is None else round(scale**-2), **write_windows(config)}


_LAYER = {
    **LAYER,
    "post_attention_layernorm": "attention_output_norm",
    "pre_feedforward_layernorm": "feed_forward_norm",
    "post_feedforward_layernorm": "feed_forward_output_norm",
}
_GEMMA = replace(
    LLAMA,
    model_type="gemma",
    architectures=classes("Gemma", "ForCausalLM"),
    fields=fields_of(
        FIELDS,
        BIAS,
        special_tokens(bos=2, eos=1, pad=0),
        **GROUPED_SIZES(3072, 28, 16, 16, 24576, head_dim=256, vocab_size=256_000, max_position_embeddings=8192),
        hidden_act="gelu_pytorch_tanh",
        tie_word_embeddings=True,
    ),
    constants={**LLAMA.constants, "norm.kind": "rms_offset", "embedding.scaled": True, "feed_forward.bias": False},
    refused={"use_bidirectional_attention": True},
    derived=_derived,
    published={"gemma-2b": GROUPED_SIZES(2048, 18, 8, 1, 16384), "gemma-7b": {}},
)
_GEMMA2 = replace(
    _GEMMA,
    model_type="gemma2",
    architectures=classes("Gemma2", "ForCausalLM"),
    fields=fields_of(
        _GEMMA.fields,
        {
            "attn_logit_softcapping": ("attention.softcap", 50.0),
            "hidden_activation": ("feed_forward.activation", "gelu_pytorch_tanh"),
            "final_logit_softcapping": ("head.softcap", 30.0),
        },
        without=("hidden_act",),
        **GROUPED_SIZES(2304, 26, 8, 4, 9216),
    ),
    constants={**_GEMMA.constants, "norm.placement": "sandwich"},
    derived=_derived2,
    written=_written2,
    rows=decoder_rows(_LAYER),
    published={
        "gemma-2-2b": {},
        "gemma-2-9b": GROUPED_SIZES(3584, 42, 16, 8, 14336),
        "gemma-2-27b": GROUPED_SIZES(4608, 46, 32, 16, 36864, head_dim=128, query_pre_attn_scalar=144),
    },
)
_ROWS3 = [
    *decoder_rows(_LAYER),
    # EmbeddingGemma.
    *linears("model.layers.{i}.", "encoder.blocks.{i}.", _LAYER),
    *linear("model.norm", "encoder.final_norm"),
]
_GEMMA3_SIZE = {"vocab_size": 262_144, "sliding_window": 512, "max_position_embeddings": 32768}
_LINEAR = {"rope_scaling": {"rope_type": "linear", "factor": 8.0}, "sliding_window": 1024}
_GEMMA3_TEXT = replace(
    _GEMMA2,
    model_type="gemma3_text",
    architectures={
        "Gemma3ForCausalLM": "language_model",
        "Gemma3TextModel": "none",
        "Gemma3TextForSequenceClassification": "classification",
    },
    fields=fields_of(
        _GEMMA2.fields,
        without=("attn_logit_softcapping",),
        vocab_size=262_208,
        max_position_embeddings=131_072,
        final_logit_softcapping=None,
    ),
    constants={**_GEMMA2.constants, "attention.qk_norm": "head"},
    refused={},
    derived=_derived3,
    written=_written3,
    rows=_ROWS3,
    published={
        "gemma-3-270m": GROUPED_SIZES(640, 18, 4, 1, 2048, **_GEMMA3_SIZE),
        "gemma-3-1b": GROUPED_SIZES(1152, 26, 4, 1, 6912, **_GEMMA3_SIZE),
        "gemma-3-4b": GROUPED_SIZES(2560, 34, 8, 4, 10240, **_LINEAR),
        "gemma-3-12b": GROUPED_SIZES(3840, 48, 16, 8, 15360, **_LINEAR),
        "gemma-3-27b": GROUPED_SIZES(5376, 62, 32, 16, 21504, head_dim=128, query_pre_attn_scalar=168, **_LINEAR),
        # Six layers, so that one is without a window, which is shorter than the texts.
        "gemma3-nano": GROUPED_SIZES(
            128, 6, 4, 1, 384, **NANO, head_dim=32, query_pre_attn_scalar=32, sliding_window=32, pad_token_id=None
        ),
    },
)
_GEMMA3 = replace(
    _GEMMA3_TEXT,
    model_type="gemma3",
    architectures={
        "Gemma3ForConditionalGeneration": "language_model",
        "Gemma3Model": "none",
        "Gemma3ForSequenceClassification": "classification",
    },
    rows=[replace(line, theirs=line.theirs.replace("model.", "model.language_model.")) for line in _ROWS3],
    prefix="model.",
    ignored=(r"(model\.)?(vision_tower|multi_modal_projector)\..*",),
    left_aside="The vision tower is left aside: of a Gemma 3 that reads images the text model is read.",
    text_model=_GEMMA3_TEXT,
    renamed=((r"^language_model\.model\.", "model.language_model."), (r"^language_model\.lm_head\.", "lm_head.")),
    published={},
)
FAMILIES = [_GEMMA, _GEMMA2, _GEMMA3_TEXT, _GEMMA3]
