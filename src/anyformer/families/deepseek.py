"""DeepSeek V2 (2405.04434) and V3 (2412.19437): latent attention, and a mixture of experts after the first layers."""

import math
from collections import ChainMap
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

from anyformer.config import HeadKind, ModelConfig, check_layers
from anyformer.errors import UserError, quote
from anyformer.families.base import Fields, Raw, Values, classes, fields_of, refuse, sizes, special_tokens
from anyformer.families.llama import BIAS, FIELDS, LLAMA
from anyformer.families.rotary import read_rope, write_rope, yarn
from anyformer.families.rows import Row, experts, linear, linears, row, split_heads

_DIGITS = 9
"""Decimals of mscale_all_dim, which follows from the factor on the scores; published files have three."""


def _derived(raw: Raw, values: Values, head: HeadKind, *, best: int = 1, method: str = "greedy") -> Values:
    """Widths of heads, the factor on the scores, dense layers and groups of experts."""
    if raw.get("num_key_value_heads") not in (None, values["attention.heads"]):
        raise UserError("config.json: num_key_value_heads must be num_attention_heads in a DeepSeek.")
    head_dim = raw.get("qk_nope_head_dim", 128) + values["attention.latent.rotary_dim"]
    dense, width = raw.get("first_k_dense_replace", 0) or 0, raw.get("intermediate_size", values["feed_forward.width"])
    check_layers(dense, "config.json: first_k_dense_replace")
    own = {name: value for name, value in values.items() if name.startswith("feed_forward.") and "experts" not in name}
    shared = {name.removeprefix("feed_forward."): value for name, value in own.items()}
    layers = {"first": "o" * dense, "then": ".", "feed_forward": {**shared, "width": width}} if dense else None
    grouped = raw.get("topk_method", method) != "greedy"
    names = {"groups": "n_group", "used_groups": "topk_group"}
    return {
        **read_rope(raw, values, head),
        "attention.head_dim": head_dim,
        "attention.scale": _scale(raw, head_dim),
        "other_layers": layers,
        "feed_forward.experts.group_best": best if grouped else 1,
        **{f"feed_forward.experts.{ours}": (raw.get(theirs) if grouped else 1) or 1 for ours, theirs in names.items()},
    }


def _check_router(raw: Raw, scores: str, *methods: str) -> None:
    """Raise UserError for scores or a choice of experts that this type does not have."""
    for name, known in {"scoring_func": (scores,), "topk_method": methods, "moe_layer_freq": (1,)}.items():
        value: Any = raw.get(name, known[0])
        if value not in known:
            choices = " or ".join(map(str, known))
            raise UserError(f"config.json: {name} = {quote(value)} is not supported for this DeepSeek ({choices} is).")


def _derived_v2(raw: Raw, values: Values, head: HeadKind) -> Values:
    _check_router(raw, "softmax", "greedy", "group_limited_greedy")
    return _derived(raw, values, head)


def _derived_v3(raw: Raw, values: Values, head: HeadKind) -> Values:
    _check_router(raw, "sigmoid", "noaux_tc")
    if raw.get("rope_interleave", True) is None:  # as False
        refuse(raw, rope_interleave=None)
    defaults = {"n_group": 8, "topk_group": 4, "first_k_dense_replace": 3, "intermediate_size": 18432}
    return _derived(ChainMap(cast("dict[str, Any]", raw), defaults), values, head, best=2, method="noaux_tc")


def _scale(raw: Raw, head_dim: int) -> float | None:
    """YaRN's second factor on the scores, of its mscale_all_dim."""
    rope: Raw = raw.get("rope_scaling") or raw.get("rope_parameters") or {}
    share, factor = rope.get("mscale_all_dim"), rope.get("factor")
    if not share or not factor or factor <= 1:
        return None
    return head_dim**-0.5 * (0.1 * share * math.log(factor) + 1) ** 2


def _written(config: ModelConfig) -> dict[str, Any]:
    attention, dense, rope = config.attention, config.other_layers, write_rope(config)
    latent, scaling, mixture = attention.latent, config.position.scaling, config.feed_forward.experts
    if latent is None or mixture is None:
        raise UserError("A DeepSeek has latent attention and experts.")
    head_dim = config.head_dim
    if attention.scale is not None and scaling is not None and scaling.factor > 1:
        share = (math.sqrt(attention.scale * head_dim**0.5) - 1) / (0.1 * math.log(scaling.factor))
        for each in rope.values():
            each["mscale_all_dim"] = round(share, _DIGITS)
    wide = config.feed_forward if dense is None or dense.feed_forward is None else dense.feed_forward
    return {
        **rope,
        "num_key_value_heads": attention.heads,
        "qk_nope_head_dim": head_dim - latent.rotary_dim,
        "first_k_dense_replace": 0 if dense is None else len(dense.first),
        "intermediate_size": wide.width,
        "n_group": mixture.groups,
        "topk_group": mixture.used_groups,
    }


def _written_v2(config: ModelConfig) -> dict[str, Any]:
    mixture = config.feed_forward.experts
    grouped = mixture is not None and mixture.groups > 1
    return {**_written(config), "topk_method": "group_limited_greedy" if grouped else "greedy"}


_LAYER, _BLOCK = "model.layers.{i}.", "decoder.blocks.{i}."
_MATRICES = {"gate_proj": "gate", "up_proj": "up", "down_proj": "down"}


def _rows(config: ModelConfig) -> Sequence[Row]:
    """LLaMA's table with latents and experts; rows of neighbors that are rotated together become halves."""
    attention, mixture = config.attention, config.feed_forward.experts
    latent = attention.latent
    if latent is None or mixture is None:
        return LLAMA.rows_of(config)
    theirs, ours, router = f"{_LAYER}self_attn.", f"{_BLOCK}attention.", f"{_BLOCK}feed_forward.router.weight"

    def turned(width: int, heads: int) -> Any:
        plain, rest = range(width - latent.rotary_dim), range(width - latent.rotary_dim, width)
        return split_heads(width, heads, order=[*plain, *rest[::2], *rest[1::2]])

    queries = turned(config.head_dim, attention.heads)
    mixed = experts(f"{_LAYER}mlp.experts.{{e}}.{{name}}.weight", _MATRICES, f"{_BLOCK}feed_forward.", mixture.count)
    return [
        *linear(f"{theirs}q_b_proj", f"{ours}query", queries, requires=f"{ours}query_down.weight"),
        *linear(f"{theirs}q_proj", f"{ours}query", queries),
        *linear(f"{theirs}q_a_proj", f"{ours}query_down"),
        *linear(f"{theirs}q_a_layernorm", f"{ours}query_norm"),
        *linear(f"{theirs}kv_a_proj_with_mqa", f"{ours}latent_down", turned(latent.rank + latent.rotary_dim, 1)),
        *linear(f"{theirs}kv_a_layernorm", f"{ours}latent_norm"),
        *linear(f"{theirs}kv_b_proj", f"{ours}latent_up"),
        *linear(f"{_LAYER}mlp.gate", f"{_BLOCK}feed_forward.router"),
        row(f"{_LAYER}mlp.gate.e_score_correction_bias", f"{_BLOCK}feed_forward.correction"),
        *linears(f"{_LAYER}mlp.shared_experts.", f"{_BLOCK}feed_forward.shared.", _MATRICES),
        *(replace(line, requires=(router,)) for line in mixed),
        *LLAMA.rows_of(config),
    ]


_OWN: Fields = {
    **BIAS,
    "kv_lora_rank": ("attention.latent.rank", 512),
    "q_lora_rank": ("attention.latent.query_rank", 1536),
    "qk_rope_head_dim": ("attention.latent.rotary_dim", 64),
    "v_head_dim": ("attention.latent.value_dim", 128),
    "moe_intermediate_size": ("feed_forward.width", 1407),
    "n_routed_experts": ("feed_forward.experts.count", 64),
    "num_experts_per_tok": ("feed_forward.experts.used", None),
    "n_shared_experts": ("feed_forward.experts.shared", 2),
    "routed_scaling_factor": ("feed_forward.experts.scale", 1.0),
}
_moe_sizes = sizes("hidden_size num_hidden_layers num_attention_heads moe_intermediate_size")
_sizes = sizes("hidden_size num_hidden_layers num_attention_heads intermediate_size moe_intermediate_size")
_LONG = {"max_position_embeddings": 163_840}
_V2_PRESET: dict[str, Any] = {
    **_LONG,
    "num_experts_per_tok": 6,
    "first_k_dense_replace": 1,
    "rope_scaling": yarn(40.0, 4096, mscale=0.707, mscale_all_dim=0.707),
    "bos_token_id": 100_000,
    "eos_token_id": 100_001,
}
_V2 = replace(
    LLAMA,
    model_type="deepseek_v2",
    architectures=classes("DeepseekV2", "ForCausalLM", ("Model", "ForSequenceClassification")),
    fields=fields_of(
        FIELDS, _OWN, without=("num_key_value_heads", "head_dim", "intermediate_size"), vocab_size=102_400
    ),
    constants={**LLAMA.constants, "feed_forward.bias": False, "feed_forward.experts.normalized": False},
    refused={"norm_topk_prob": True, "mlp_bias": True},
    derived=_derived_v2,
    written=_written_v2,
    rows=_rows,
    published={
        "deepseek-v2-lite": _sizes(2048, 27, 16, 10944, 1408, **_V2_PRESET, q_lora_rank=None),
        "deepseek-v2": _sizes(
            *(5120, 60, 128, 12288, 1536),
            **_V2_PRESET,
            n_routed_experts=160,
            routed_scaling_factor=16.0,
            topk_method="group_limited_greedy",
            n_group=8,
            topk_group=3,
        ),
    },
)
_V3 = replace(
    _V2,
    model_type="deepseek_v3",
    architectures=classes("DeepseekV3", "ForCausalLM"),
    fields=fields_of(
        _V2.fields,
        {"norm_topk_prob": ("feed_forward.experts.normalized", True)},
        special_tokens(bos=0, eos=1),
        **_moe_sizes(7168, 61, 128, 2048, vocab_size=129_280, max_position_embeddings=4096, n_routed_experts=256),
        num_experts_per_tok=8,
        n_shared_experts=1,
        routed_scaling_factor=2.5,
    ),
    constants={
        **LLAMA.constants,
        "feed_forward.bias": False,
        "feed_forward.experts.scores": "sigmoid",
        "feed_forward.experts.correction": True,
    },
    refused={"rope_interleave": False},
    derived=_derived_v3,
    written=_written,
    # The layer that predicts one token more.
    ignored=(r"model\.layers\.61\..*",),
    published={"deepseek-v3": {**_LONG, "rope_scaling": yarn(40.0, 4096, mscale=1.0, mscale_all_dim=1.0)}},
)
FAMILIES = [_V2, _V3]
