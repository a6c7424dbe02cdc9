"""Mixtures of experts on LLaMA's plan: Mixtral (Jiang et al. 2024, 2401.04088), section 2.1; Qwen3-MoE (2505.09388),
section 2; OLMoE (Muennighoff et al. 2024, 2409.02060), section 2; Granite 3's (IBM 2024).

They differ in the number and width of their experts, and in whether the weights of the chosen ones sum to 1.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from anyformer.config import HeadKind, ModelConfig
from anyformer.errors import UserError, quote
from anyformer.families.base import SIZES, Fields, Raw, Values, classes, fields_of, sizes, special_tokens
from anyformer.families.llama import (
    BIAS,
    FIELDS,
    GRANITE,
    GRANITE_PRESET,
    LLAMA,
    NANO,
    NO_BIAS,
    QWEN3,
    ROWS_WITHOUT_NETWORKS,
)
from anyformer.families.rotary import read_rope, write_rope
from anyformer.families.rows import Row, experts, linear, row, stacked

_BLOCK = "decoder.blocks.{i}.feed_forward."
_MLP, _MOE = "model.layers.{i}.mlp.", "model.layers.{i}.block_sparse_moe."
_COUNTS = ("num_local_experts", "num_experts")
"""Names of the number of experts, which transformers takes for the same."""


def _derived(raw: Raw, values: Values, head: HeadKind) -> Values:
    """Rotary positions and the number of experts. Raises UserError for switches that no model here can follow."""
    off = {"router_jitter_noise": 0.0, "clip_qkv": None, "mlp_only_layers": [], "decoder_sparse_step": 1}
    for name, plain in off.items():
        if raw.get(name) not in (None, plain):
            kind = quote(raw.get("model_type"))
            raise UserError(f"config.json: {name} = {quote(raw[name])} is not supported for model type {kind}.")
    count = next((raw[name] for name in _COUNTS if name in raw), values["feed_forward.experts.count"])
    return {**read_rope(raw, values, head), "feed_forward.experts.count": count}


def _count(config: ModelConfig) -> int:
    return 0 if config.feed_forward.experts is None else config.feed_forward.experts.count


def _rows_with(router: str, matrices: str, layers: Mapping[str, str]) -> Callable[[ModelConfig], Sequence[Row]]:
    """LLaMA's table, with the matrices of experts in the place of those of its feed-forward."""
    shared = [*ROWS_WITHOUT_NETWORKS, *linear(router, f"{_BLOCK}router")]
    return lambda config: [*shared, *experts(matrices, layers, _BLOCK, _count(config))]


def _experts_fields(count: str, used: int, most: int, balance: float) -> Fields:
    return {
        count: ("feed_forward.experts.count", most),
        "num_experts_per_tok": ("feed_forward.experts.used", used),
        "router_aux_loss_coef": ("feed_forward.experts.balance", balance),
    }


_NORMALIZED: Fields = {"norm_topk_prob": ("feed_forward.experts.normalized", False)}
_MIXTRAL = replace(
    LLAMA,
    model_type="mixtral",
    architectures=classes("Mixtral", "ForCausalLM"),
    fields=fields_of(
        FIELDS,
        {"sliding_window": ("attention.window", None)},
        _experts_fields("num_local_experts", 2, 8, 0.001),
        max_position_embeddings=131072,
        num_key_value_heads=8,
        intermediate_size=14336,
        rope_theta=1_000_000.0,
        rms_norm_eps=1e-5,
    ),
    constants={**LLAMA.constants, **NO_BIAS},
    derived=_derived,
    rows=_rows_with(f"{_MOE}gate", f"{_MOE}experts.{{e}}.{{name}}.weight", {"w1": "gate", "w3": "up", "w2": "down"}),
    published={
        "mixtral-8x7b": SIZES(4096, 32, 32, 14336, max_position_embeddings=32768, router_aux_loss_coef=0.02),
        "mixtral-8x22b": SIZES(6144, 56, 48, 16384, max_position_embeddings=65536, router_aux_loss_coef=0.02),
        # As many operations for a token as llama-nano.
        "mixtral-nano": SIZES(128, 4, 4, 192, num_key_value_heads=4, router_aux_loss_coef=0.02, **NANO),
    },
)


_qwen_sizes = sizes("hidden_size num_hidden_layers num_attention_heads moe_intermediate_size")
_QWEN3_PRESET = {
    "max_position_embeddings": 40960,
    "head_dim": 128,
    "rope_theta": 1_000_000.0,
    "norm_topk_prob": True,
    "bos_token_id": 151643,
    "eos_token_id": 151645,
}
_QWEN_LAYERS = {"gate_proj": "gate", "up_proj": "up", "down_proj": "down"}
_ROWS = _rows_with(f"{_MLP}gate", f"{_MLP}experts.{{e}}.{{name}}.weight", _QWEN_LAYERS)


def _derived_qwen(raw: Raw, values: Values, head: HeadKind) -> Values:
    window = raw.get("sliding_window", 4096) if raw.get("use_sliding_window") else None
    return {**_derived(raw, values, head), "attention.window": window}


def _written_qwen(config: ModelConfig) -> dict[str, Any]:
    window = config.attention.window
    rest = {"sliding_window": window, "use_sliding_window": window is not None}
    # The width of a network for all tokens, of which there is none.
    return {**write_rope(config), **rest, "intermediate_size": config.feed_forward.width}


_QWEN3_MOE = replace(
    QWEN3,
    model_type="qwen3_moe",
    architectures=classes("Qwen3Moe", "ForCausalLM"),
    fields=fields_of(
        QWEN3.fields,
        {"moe_intermediate_size": ("feed_forward.width", 768)},
        _NORMALIZED,
        _experts_fields("num_experts", 8, 128, 0.001),
        without=("intermediate_size",),
        num_key_value_heads=4,
        head_dim=None,  # transformers 5.24 has no default of its own for it
    ),
    derived=_derived_qwen,
    written=_written_qwen,
    rows=_ROWS,
    published={
        "qwen3-30b-a3b": _qwen_sizes(2048, 48, 32, 768, **_QWEN3_PRESET),
        "qwen3-235b-a22b": _qwen_sizes(4096, 94, 64, 1536, **_QWEN3_PRESET),
    },
)
_OLMOE = replace(
    LLAMA,
    model_type="olmoe",
    architectures=classes("Olmoe", "ForCausalLM", ("Model",)),
    fields=fields_of(
        FIELDS,
        BIAS,
        _NORMALIZED,
        _experts_fields("num_experts", 8, 64, 0.01),
        special_tokens(eos=50279, pad=1),
        **SIZES(2048, 16, 16, 2048, vocab_size=50304, max_position_embeddings=4096),
        rms_norm_eps=1e-5,
    ),
    constants={**LLAMA.constants, "attention.qk_norm": "width", "feed_forward.bias": False},
    derived=_derived,
    rows=_ROWS,
    published={"olmoe-1b-7b": {"intermediate_size": 1024}},
)
_granite_sizes = sizes("hidden_size num_hidden_layers num_attention_heads num_local_experts")
_GRANITE_PRESET = {
    **GRANITE_PRESET,
    "intermediate_size": 512,
    "num_experts_per_tok": 8,
    "rms_norm_eps": 1e-6,
    "logits_scaling": 6.0,
    "attention_multiplier": 0.015625,
}


def _granite_rows(config: ModelConfig) -> Sequence[Row]:
    operation = stacked(_count(config))
    return [
        *ROWS_WITHOUT_NETWORKS,
        *linear(f"{_MOE}router.layer", f"{_BLOCK}router"),
        row(f"{_MOE}input_linear.weight", (f"{_BLOCK}gate.weight", f"{_BLOCK}up.weight"), operation),
        row(f"{_MOE}output_linear.weight", f"{_BLOCK}down.weight", operation),
    ]


def _derived_granite(raw: Raw, values: Values, head: HeadKind) -> Values:
    return {**GRANITE.derived(raw, values, head), **_derived(raw, values, head)}


_GRANITE_MOE = replace(
    GRANITE,
    model_type="granitemoe",
    experts=f"{_MOE}experts",
    architectures=classes("GraniteMoe", "ForCausalLM", ("Model",)),
    fields={**GRANITE.fields, **_experts_fields("num_local_experts", 2, 8, 0.001)},
    constants={**GRANITE.constants, "feed_forward.bias": False},
    derived=_derived_granite,
    rows=_granite_rows,
    published={
        "granite-3.0-1b-a400m": _granite_sizes(1024, 24, 16, 32, **_GRANITE_PRESET),
        "granite-3.0-3b-a800m": _granite_sizes(1536, 32, 24, 40, **_GRANITE_PRESET),
    },
)
FAMILIES = [_MIXTRAL, _QWEN3_MOE, _OLMOE, _GRANITE_MOE]
