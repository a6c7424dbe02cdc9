"""Falcon: "The Falcon Series of Open Language Models" (Almazrouei et al. 2023, 2311.16867)."""

from collections.abc import Sequence
from typing import Any

from anyformer.config import HeadKind, ModelConfig
from anyformer.errors import UserError
from anyformer.families.base import (
    Family,
    Raw,
    Values,
    classes,
    head_operations,
    sizes,
    special_tokens,
)
from anyformer.families.llama import read_rope, write_rope
from anyformer.families.rows import Row, linear, linears, row, tied

_PLACEMENTS = {(True, 1): "parallel_shared", (True, 2): "parallel", (False, 1): "pre"}
"""By `parallel_attn` and `num_ln_in_parallel_attn`."""


def _derived(raw: Raw, values: Values, head: HeadKind) -> Values:
    grouped, heads = raw.get("new_decoder_architecture") or False, values["attention.heads"]
    norms = raw.get("num_ln_in_parallel_attn") or (2 if grouped else 1)
    placement = _PLACEMENTS.get((raw.get("parallel_attn", True), norms))
    if placement is None or (placement == "pre" and grouped) or (norms == 2 and not grouped):
        raise UserError(
            "config.json: these new_decoder_architecture, parallel_attn and num_ln_in_parallel_attn don't go together."
        )
    kv_heads = 1 if raw.get("multi_query", True) and not grouped else raw.get("num_kv_heads") or heads
    if kv_heads not in (1, heads) and not grouped:
        raise UserError("config.json: num_kv_heads is of the new_decoder_architecture alone.")
    bias: bool = raw.get("bias") or False
    return {
        **read_rope(raw, values, head),
        "norm.placement": placement,
        "attention.kv_heads": kv_heads,
        "feed_forward.width": raw.get("ffn_hidden_size") or 4 * values["d_model"],
        **dict.fromkeys(("attention.bias", "attention.output_bias", "feed_forward.bias"), bias),
    }


def _grouped(config: ModelConfig) -> bool:
    """Whether keys and values have groups of queries, as in Falcon-40B."""
    heads, placement = config.attention.heads, config.norm.placement
    return placement == "parallel" or config.attention.kv_heads not in (None, 1, heads)


def _written(config: ModelConfig) -> dict[str, Any]:
    heads, grouped, placement = config.attention.heads, _grouped(config), config.norm.placement
    kv_heads = config.attention.kv_heads or heads
    return {
        **write_rope(config),
        "alibi": False,
        "new_decoder_architecture": grouped,
        "multi_query": kv_heads == 1 and not grouped,
        "num_kv_heads": kv_heads if grouped else heads,
        "parallel_attn": placement != "pre",
        "num_ln_in_parallel_attn": (2 if placement == "parallel" else 1) if grouped else None,
        "bias": config.attention.bias,
    }


_LAYER = {
    "self_attention.dense": "attention.output",
    "mlp.dense_h_to_4h": "feed_forward.up",
    "mlp.dense_4h_to_h": "feed_forward.down",
}
_NORMS = {
    "parallel": {"ln_attn": "attention_norm", "ln_mlp": "feed_forward_norm"},
    "parallel_shared": {"input_layernorm": "attention_norm"},
    "pre": {"input_layernorm": "attention_norm", "post_attention_layernorm": "feed_forward_norm"},
}
_QKV = [f"decoder.blocks.{{i}}.attention.{part}" for part in ("query", "key", "value")]


def _rows(config: ModelConfig) -> Sequence[Row]:
    kv_heads = config.attention.kv_heads or config.attention.heads
    groups = head_operations(config)(config.attention.heads // kv_heads, 1, 1, groups=kv_heads)
    return [
        row("transformer.word_embeddings.weight", "token_embedding.table.weight"),
        *linears("transformer.h.{i}.", "decoder.blocks.{i}.", _LAYER | _NORMS.get(config.norm.placement, {})),
        *linear("transformer.h.{i}.self_attention.query_key_value", _QKV, groups),
        *linear("transformer.ln_f", "decoder.final_norm"),
        *tied("lm_head"),
        *linear("classifier", "head.labels", requires="head.labels.bias"),
        row("score.weight", "head.labels.weight"),
    ]


_sizes = sizes("hidden_size num_hidden_layers num_attention_heads num_kv_heads")
_GROUPED = {"new_decoder_architecture": True}
FAMILY = Family(
    model_type="falcon",
    architectures=classes("Falcon", "ForCausalLM"),
    fields={
        "vocab_size": ("vocab_size", 65024),
        "hidden_size": ("d_model", 4544),
        "num_hidden_layers": ("decoder_layers", 32),
        "max_position_embeddings": ("max_length", 2048),
        "num_attention_heads": ("attention.heads", 71),
        "attention_dropout": ("attention.dropout", 0.0),
        "ffn_hidden_size": ("feed_forward.width", None),
        "activation": ("feed_forward.activation", "gelu"),
        "rope_theta": ("position.theta", 10_000.0),
        "layer_norm_epsilon": ("norm.eps", 1e-5),
        "tie_word_embeddings": ("embedding.tied", True),
        "initializer_range": ("init.std", 0.02),
        "hidden_dropout": ("dropout", 0.0),
        **special_tokens(bos=11, eos=11),
    },
    constants={"position.kind": "rotary", "embedding.padding": None},
    refused={"alibi": True},
    derived=_derived,
    written=_written,
    rows=_rows,
    prefix="transformer.",
    published={
        "falcon-7b": {},
        "falcon-11b": _sizes(
            *(4096, 60, 32, 8),
            **_GROUPED,
            num_ln_in_parallel_attn=1,
            max_position_embeddings=8192,
            rope_theta=500_042.0,
            tie_word_embeddings=False,
        ),
        "falcon-40b": _sizes(8192, 60, 128, 8, **_GROUPED, tie_word_embeddings=False),
    },
)
