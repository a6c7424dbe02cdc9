"""Command R (Cohere 2024): one norm for attention and feed-forward side by side, and pairs of neighbors that turn."""

from collections.abc import Sequence
from dataclasses import replace

from anyformer.config import ModelConfig
from anyformer.families.base import classes, rotary_rows, sizes, special_tokens
from anyformer.families.llama import BIAS, FIELDS, LLAMA
from anyformer.families.rows import Row, linear, linears, row, tied

_LAYER = {
    "input_layernorm": "attention_norm",
    "self_attn.v_proj": "attention.value",
    "self_attn.o_proj": "attention.output",
    "mlp.gate_proj": "feed_forward.gate",
    "mlp.up_proj": "feed_forward.up",
    "mlp.down_proj": "feed_forward.down",
}


def _rows(config: ModelConfig) -> Sequence[Row]:
    return [
        row("model.embed_tokens.weight", "token_embedding.table.weight"),
        *linears("model.layers.{i}.", "decoder.blocks.{i}.", _LAYER),
        *rotary_rows(config, "neighbors"),
        *linear("model.norm", "decoder.final_norm"),
        *tied("lm_head"),
    ]


_sizes = sizes("hidden_size num_hidden_layers num_attention_heads num_key_value_heads intermediate_size rope_theta")
FAMILY = replace(
    LLAMA,
    model_type="cohere",
    architectures=classes("Cohere", "ForCausalLM", ("Model",)),
    fields={
        **{name: field for name, field in FIELDS.items() if name != "rms_norm_eps"},
        **BIAS,
        "vocab_size": ("vocab_size", 256_000),
        "hidden_size": ("d_model", 8192),
        "num_hidden_layers": ("decoder_layers", 40),
        "max_position_embeddings": ("max_length", 8192),
        "num_attention_heads": ("attention.heads", 64),
        "intermediate_size": ("feed_forward.width", 22528),
        "rope_theta": ("position.theta", 500_000.0),
        "layer_norm_eps": ("norm.eps", 1e-5),
        "logit_scale": ("head.scale", 0.0625),
        "tie_word_embeddings": ("embedding.tied", True),
        **special_tokens(bos=5, eos=255_001, pad=0),
    },
    constants={
        **LLAMA.constants,
        "norm.kind": "layer_no_bias",
        "norm.placement": "parallel_shared",
        "feed_forward.bias": False,
    },
    refused={"use_qk_norm": True},
    rows=_rows,
    published={
        "command-r": _sizes(8192, 40, 64, 64, 22528, 8_000_000.0),
        "command-r-08-2024": _sizes(8192, 40, 64, 8, 24576, 4_000_000.0, max_position_embeddings=131072),
        "aya-23-8b": _sizes(4096, 32, 32, 8, 14336, 10_000.0),
    },
)
