"""gpt-oss (OpenAI 2025, gpt-oss-120b & gpt-oss-20b Model Card, 2508.10925), section 2: experts with biases and a
bounded gate, a sink in each head's softmax, a window in every other layer, YaRN whose range is not rounded.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from anyformer.config import HeadKind, ModelConfig
from anyformer.errors import UserError
from anyformer.families.base import GROUPED_SIZES, Raw, Values, classes, fields_of, special_tokens
from anyformer.families.llama import (
    BIAS,
    FIELDS,
    LLAMA,
    ROWS_WITHOUT_NETWORKS,
)
from anyformer.families.rotary import layers_with_window, read_layer_types, read_rope, write_rope, write_windows
from anyformer.families.rows import Row, experts_by_columns, linear, row

_YARN = {"rope_type": "yarn", "factor": 32.0, "truncate": False, "original_max_position_embeddings": 4096}
"""Positions where config.json has none."""
_ALPHA = 1.702


def _derived(raw: Raw, values: Values, head: HeadKind) -> Values:
    if raw.get("swiglu_alpha", _ALPHA) != _ALPHA:
        raise UserError(f"config.json: gpt-oss is supported where swiglu_alpha = {_ALPHA}.")
    count = raw.get("num_experts", values["feed_forward.experts.count"])
    types = read_layer_types(raw, values["decoder_layers"], lambda layer: layer % 2 == 0)
    has_rope = raw.get("rope_scaling") or raw.get("rope_parameters")
    rope = read_rope(raw if has_rope else {"rope_parameters": _YARN}, values, head)
    # The published factor of 0.9 is meant for a training from nothing: transformers leaves the loss out unless told.
    is_balanced = raw.get("output_router_logits", False)
    return {
        **rope,
        **layers_with_window(types, raw.get("sliding_window", 128)),
        "feed_forward.experts.count": count,
        "feed_forward.experts.balance": raw.get("router_aux_loss_coef", 0.001) if is_balanced else 0.0,
    }


def _written(config: ModelConfig) -> dict[str, Any]:
    balance = config.feed_forward.experts and config.feed_forward.experts.balance
    return {
        **write_rope(config),
        **write_windows(config),
        "hidden_act": "silu",
        "output_router_logits": bool(balance),
        "router_aux_loss_coef": balance or 0.9,
    }


def _rows(config: ModelConfig) -> Sequence[Row]:
    columns = experts_by_columns(0 if config.feed_forward.experts is None else config.feed_forward.experts.count)
    theirs, ours = "model.layers.{i}.", "decoder.blocks.{i}."
    experts, network = f"{theirs}mlp.experts.", f"{ours}feed_forward."
    return [
        *ROWS_WITHOUT_NETWORKS,
        row(f"{theirs}self_attn.sinks", f"{ours}attention.sinks"),
        *linear(f"{theirs}mlp.router", f"{network}router"),
        row(f"{experts}gate_up_proj", (f"{network}gate.weight", f"{network}up.weight"), columns),
        row(f"{experts}gate_up_proj_bias", (f"{network}gate.bias", f"{network}up.bias"), columns),
        row(f"{experts}down_proj", f"{network}down.weight", columns),
        row(f"{experts}down_proj_bias", f"{network}down.bias", columns),
    ]


FAMILY = replace(
    LLAMA,
    model_type="gpt_oss",
    architectures=classes("GptOss", "ForCausalLM"),
    fields=fields_of(
        FIELDS,
        BIAS,
        {
            "swiglu_limit": ("feed_forward.limit", 7.0),
            "num_local_experts": ("feed_forward.experts.count", 128),
            "num_experts_per_tok": ("feed_forward.experts.used", 4),
        },
        special_tokens(),
        without=("hidden_act",),
        **GROUPED_SIZES(2880, 36, 64, 8, 2880, head_dim=64, vocab_size=201088, max_position_embeddings=131072),
        attention_bias=True,
        rope_theta=150_000.0,
        rms_norm_eps=1e-5,
    ),
    constants={
        **LLAMA.constants,
        "attention.sinks": True,
        "feed_forward.activation": "quick_gelu",
        "feed_forward.up_offset": 1.0,
        "feed_forward.experts.router_bias": True,
    },
    derived=_derived,
    written=_written,
    rows=_rows,
    published={
        name: {"num_hidden_layers": layers, "num_local_experts": count, "eos_token_id": 200002, "pad_token_id": 199999}
        for name, layers, count in (("gpt-oss-20b", 24, 32), ("gpt-oss-120b", 36, 128))
    },
)
