"""Phi: "Textbooks Are All You Need" (Gunasekar et al. 2023, 2306.11644), section 2.3, and II (2309.05463), 2.1."""

from collections.abc import Sequence
from typing import Any

from anyformer.config import HeadKind, ModelConfig
from anyformer.families.base import (
    Family,
    Raw,
    Values,
    classes,
    rotary_rows,
    sizes,
    special_tokens,
)
from anyformer.families.llama import read_rope, write_rope
from anyformer.families.rows import Row, linear, linears, row, tied


def _derived(raw: Raw, values: Values, head: HeadKind) -> Values:
    bias = {"head.bias": "learned"} if head == "language_model" else {}
    return {**read_rope(raw, values, head), **bias}


def _written(config: ModelConfig) -> dict[str, Any]:
    return {**write_rope(config), "qk_layernorm": False}


_LAYER = {
    "input_layernorm": "attention_norm",
    "self_attn.v_proj": "attention.value",
    "self_attn.dense": "attention.output",
    "mlp.fc1": "feed_forward.up",
    "mlp.fc2": "feed_forward.down",
}


def _rows(config: ModelConfig) -> Sequence[Row]:
    return [
        row("model.embed_tokens.weight", "token_embedding.table.weight"),
        *linears("model.layers.{i}.", "decoder.blocks.{i}.", _LAYER),
        *rotary_rows(config),
        *linear("model.final_layernorm", "decoder.final_norm"),
        *tied("lm_head"),
        row("lm_head.bias", "head.bias"),
        *linear("score", "head.labels"),
    ]


_sizes = sizes("hidden_size num_hidden_layers num_attention_heads intermediate_size")
FAMILY = Family(
    model_type="phi",
    architectures=classes("Phi", "ForCausalLM"),
    fields={
        "vocab_size": ("vocab_size", 51200),
        "hidden_size": ("d_model", 2048),
        "num_hidden_layers": ("decoder_layers", 24),
        "max_position_embeddings": ("max_length", 2048),
        "num_attention_heads": ("attention.heads", 32),
        "num_key_value_heads": ("attention.kv_heads", None),
        "attention_dropout": ("attention.dropout", 0.0),
        "intermediate_size": ("feed_forward.width", 8192),
        "hidden_act": ("feed_forward.activation", "gelu_new"),
        "rope_theta": ("position.theta", 10_000.0),
        "partial_rotary_factor": ("position.rotary_fraction", 0.5),
        "layer_norm_eps": ("norm.eps", 1e-5),
        "tie_word_embeddings": ("embedding.tied", False),
        "initializer_range": ("init.std", 0.02),
        "embd_pdrop": ("embedding.dropout", 0.0),
        "resid_pdrop": ("dropout", 0.0),
        **special_tokens(bos=1, eos=2),
    },
    constants={"position.kind": "rotary", "norm.placement": "parallel_shared"},
    refused={"qk_layernorm": True},
    derived=_derived,
    written=_written,
    rows=_rows,
    prefix="model.",
    published={
        "phi-2": _sizes(
            2560,
            32,
            32,
            10240,
            partial_rotary_factor=0.4,
            resid_pdrop=0.1,
            **dict.fromkeys(("bos_token_id", "eos_token_id"), 50256),
        ),
        "phi-1.5": dict.fromkeys(("bos_token_id", "eos_token_id")),
    },
)
