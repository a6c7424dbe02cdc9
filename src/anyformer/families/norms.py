"""LLaMAs with other norms: OLMo 2 (OLMo Team 2025, 2501.00656), section 2, with norms on the branches alone, and on all
queries and keys; OLMo 3 (OLMo Team 2025), with a window in three layers of four as well; nanochat (Karpathy 2025), as
transformers has it, with norms without weights, squared ReLU and capped logits.
"""

from dataclasses import replace
from typing import Any

from anyformer.config import HeadKind, ModelConfig
from anyformer.errors import UserError, quote
from anyformer.families.base import GROUPED_SIZES, SIZES, Raw, Values, classes, fields_of, special_tokens
from anyformer.families.llama import BIAS, FIELDS, LAYER, LLAMA, decoder_rows
from anyformer.families.rotary import (
    read_layer_types,
    read_layers,
    read_rope,
    rotary_rows,
    write_rope,
    write_ropes,
    write_windows,
    yarn,
)
from anyformer.families.rows import Row


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
    constants={
        **LLAMA.constants,
        "attention.qk_norm": "width",
        "feed_forward.bias": False,
        "norm.placement": "branch",
    },
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
