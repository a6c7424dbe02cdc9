"""Decoders whose attention and feed-forward read the same hidden states, side by side: GPT-NeoX (Black et al. 2022,
2204.06745), section 2.1, and Pythia (Biderman et al. 2023, 2304.01373), section 2; Phi: "Textbooks Are All You Need"
(Gunasekar et al. 2023, 2306.11644), section 2.3, and II (2309.05463), 2.1; Falcon: "The Falcon Series of Open Language
Models" (Almazrouei et al. 2023, 2311.16867); Command R (Cohere 2024).

GPT-NeoX has a norm for each of the two, Phi and Command R one for both, Falcon either. Command R turns pairs of
neighbors.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from anyformer.config import HeadKind, ModelConfig
from anyformer.errors import UserError
from anyformer.families.base import (
    SIZES,
    Family,
    Raw,
    Values,
    classes,
    decoder_head,
    fields_of,
    refuse,
    sizes,
    special_tokens,
)
from anyformer.families.llama import BIAS, FIELDS, LAYER, LLAMA, decoder_rows
from anyformer.families.rotary import head_operations, read_rope, rotary_rows, write_rope
from anyformer.families.rows import QKV, Row, linear, linears, row, tied

_NEOX_LAYER = {
    "input_layernorm": "attention_norm",
    "attention.dense": "attention.output",
    "post_attention_layernorm": "feed_forward_norm",
    "mlp.dense_h_to_4h": "feed_forward.up",
    "mlp.dense_4h_to_h": "feed_forward.down",
}


def _rows_neox(config: ModelConfig) -> Sequence[Row]:
    per_head = head_operations(config)(1, 1, 1, groups=config.attention.heads)
    return [
        row("gpt_neox.embed_in.weight", "token_embedding.table.weight"),
        *linears("gpt_neox.layers.{i}.", "decoder.blocks.{i}.", _NEOX_LAYER),
        *linear("gpt_neox.layers.{i}.attention.query_key_value", QKV, per_head),
        *linear("gpt_neox.final_layer_norm", "decoder.final_norm"),
        *tied("embed_out"),
        *linear("classifier", "head.labels", requires="head.labels.bias"),
        row("score.weight", "head.labels.weight"),
    ]


def _derived_neox(raw: Raw, values: Values, head: HeadKind) -> Values:
    if (head_dim := raw.get("head_dim")) is not None and head_dim != values["d_model"] / values["attention.heads"]:
        refuse(raw, head_dim=head_dim)
    placement = "parallel" if raw.get("use_parallel_residual", True) else "pre"
    return {**read_rope(raw, values, head), "norm.placement": placement}


_PYTHIA = {"vocab_size": 50304, "eos_token_id": 0}
GPT_NEOX = Family(
    model_type="gpt_neox",
    architectures=classes("GPTNeoX", "ForCausalLM"),
    fields=fields_of(
        FIELDS,
        {
            "attention_bias": ("attention.bias attention.output_bias", True),
            "rotary_emb_base": ("position.theta", 10_000.0),
            "rotary_pct": ("position.rotary_fraction", 0.25),
            "layer_norm_eps": ("norm.eps", 1e-5),
            "hidden_dropout": ("dropout embedding.dropout", 0.0),
        },
        special_tokens(bos=0, eos=2),
        without=("num_key_value_heads", "head_dim", "rope_theta", "rms_norm_eps"),
        **SIZES(6144, 44, 64, 24576, vocab_size=50432, hidden_act="gelu"),
    ),
    constants={"position.kind": "rotary", "embedding.padding": None},
    derived=_derived_neox,
    written=lambda config: {**write_rope(config), "use_parallel_residual": config.norm.placement == "parallel"},
    read_head=lambda raw, kind: decoder_head(raw, kind, dropout=0.1),
    rows=_rows_neox,
    prefix="gpt_neox.",
    ignored=(r"(gpt_neox\.)?layers\.\d+\.attention\.(bias|masked_bias)",),
    renamed=((r"^lm_head\.", "embed_out."),),
    published={
        "pythia-70m": SIZES(512, 6, 8, 2048, **_PYTHIA),
        "pythia-14m": SIZES(128, 6, 4, 512, **_PYTHIA),
        "pythia-160m": SIZES(768, 12, 12, 3072, **_PYTHIA),
        "pythia-410m": SIZES(1024, 24, 16, 4096, **_PYTHIA),
        "pythia-1b": SIZES(2048, 16, 8, 8192, **_PYTHIA),
        "pythia-1.4b": SIZES(2048, 24, 16, 8192, **_PYTHIA),
        "pythia-2.8b": SIZES(2560, 32, 32, 10240, **_PYTHIA),
        "pythia-6.9b": SIZES(4096, 32, 32, 16384, **{**_PYTHIA, "vocab_size": 50432}),
        "pythia-12b": SIZES(5120, 36, 40, 20480, **{**_PYTHIA, "vocab_size": 50688}),
        "gpt-neox-20b": {"hidden_act": "gelu_fast", "eos_token_id": 0},
    },
)


_PHI_LAYER = {
    "input_layernorm": "attention_norm",
    "self_attn.v_proj": "attention.value",
    "self_attn.dense": "attention.output",
    "mlp.fc1": "feed_forward.up",
    "mlp.fc2": "feed_forward.down",
}
PHI = Family(
    model_type="phi",
    architectures=classes("Phi", "ForCausalLM"),
    fields=fields_of(
        FIELDS,
        {
            "partial_rotary_factor": ("position.rotary_fraction", 0.5),
            "layer_norm_eps": ("norm.eps", 1e-5),
            "embd_pdrop": ("embedding.dropout", 0.0),
            "resid_pdrop": ("dropout", 0.0),
        },
        without=("head_dim", "rms_norm_eps"),
        **SIZES(2048, 24, 32, 8192, vocab_size=51200, hidden_act="gelu_new"),
    ),
    constants={"position.kind": "rotary", "norm.placement": "parallel_shared"},
    refused={"qk_layernorm": True},
    derived=lambda raw, values, head: {
        **read_rope(raw, values, head),
        **({"head.bias": "learned"} if head == "language_model" else {}),
    },
    written=lambda config: {**write_rope(config), "qk_layernorm": False},
    rows=lambda config: [
        *decoder_rows(_PHI_LAYER, rotary_rows(config), "model.final_layernorm"),
        row("lm_head.bias", "head.bias"),
    ],
    prefix="model.",
    published={
        "phi-2": SIZES(
            2560, 32, 32, 10240, partial_rotary_factor=0.4, resid_pdrop=0.1, bos_token_id=50256, eos_token_id=50256
        ),
        "phi-1.5": dict.fromkeys(("bos_token_id", "eos_token_id")),
    },
)

_PLACEMENTS = {(True, 1): "parallel_shared", (True, 2): "parallel", (False, 1): "pre"}
"""By `parallel_attn` and `num_ln_in_parallel_attn`."""


def _derived_falcon(raw: Raw, values: Values, head: HeadKind) -> Values:
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


def _written_falcon(config: ModelConfig) -> dict[str, Any]:
    heads, placement = config.attention.heads, config.norm.placement
    kv_heads = config.attention.kv_heads or heads
    grouped = placement == "parallel" or kv_heads not in (1, heads)  # keys have groups of queries, as in Falcon-40B
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


_FALCON_LAYER = {
    "self_attention.dense": "attention.output",
    "mlp.dense_h_to_4h": "feed_forward.up",
    "mlp.dense_4h_to_h": "feed_forward.down",
}
_NORMS = {
    "parallel": {"ln_attn": "attention_norm", "ln_mlp": "feed_forward_norm"},
    "parallel_shared": {"input_layernorm": "attention_norm"},
    "pre": {"input_layernorm": "attention_norm", "post_attention_layernorm": "feed_forward_norm"},
}


def _rows_falcon(config: ModelConfig) -> Sequence[Row]:
    kv_heads = config.attention.kv_heads or config.attention.heads
    groups = head_operations(config)(config.attention.heads // kv_heads, 1, 1, groups=kv_heads)
    return [
        row("transformer.word_embeddings.weight", "token_embedding.table.weight"),
        *linears("transformer.h.{i}.", "decoder.blocks.{i}.", _FALCON_LAYER | _NORMS.get(config.norm.placement, {})),
        *linear("transformer.h.{i}.self_attention.query_key_value", QKV, groups),
        *linear("transformer.ln_f", "decoder.final_norm"),
        *tied("lm_head"),
        *linear("classifier", "head.labels", requires="head.labels.bias"),
        row("score.weight", "head.labels.weight"),
    ]


_falcon_sizes = sizes("hidden_size num_hidden_layers num_attention_heads num_kv_heads")
_GROUPED = {"new_decoder_architecture": True}
FALCON = Family(
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
    derived=_derived_falcon,
    written=_written_falcon,
    rows=_rows_falcon,
    prefix="transformer.",
    published={
        "falcon-7b": {},
        "falcon-11b": _falcon_sizes(
            *(4096, 60, 32, 8),
            **_GROUPED,
            num_ln_in_parallel_attn=1,
            max_position_embeddings=8192,
            rope_theta=500_042.0,
            tie_word_embeddings=False,
        ),
        "falcon-40b": _falcon_sizes(8192, 60, 128, 8, **_GROUPED, tie_word_embeddings=False),
    },
)

_COHERE_LAYER = {name: ours for name, ours in LAYER.items() if ours not in ("attention.query", "attention.key")}


def _rows_cohere(config: ModelConfig) -> Sequence[Row]:
    return decoder_rows(_COHERE_LAYER, rotary_rows(config, "neighbors"))


_cohere_sizes = sizes(
    "hidden_size num_hidden_layers num_attention_heads num_key_value_heads intermediate_size rope_theta"
)
COHERE = replace(
    LLAMA,
    model_type="cohere",
    architectures=classes("Cohere", "ForCausalLM", ("Model",)),
    fields=fields_of(
        FIELDS,
        BIAS,
        {"layer_norm_eps": ("norm.eps", 1e-5), "logit_scale": ("head.scale", 0.0625)},
        special_tokens(bos=5, eos=255_001, pad=0),
        without=("rms_norm_eps",),
        **SIZES(8192, 40, 64, 22528, vocab_size=256_000, max_position_embeddings=8192),
        rope_theta=500_000.0,
        tie_word_embeddings=True,
    ),
    constants={
        **LLAMA.constants,
        "norm.kind": "layer_no_bias",
        "norm.placement": "parallel_shared",
        "feed_forward.bias": False,
    },
    refused={"use_qk_norm": True},
    rows=_rows_cohere,
    published={
        "command-r": _cohere_sizes(8192, 40, 64, 64, 22528, 8_000_000.0),
        "command-r-08-2024": _cohere_sizes(8192, 40, 64, 8, 24576, 4_000_000.0, max_position_embeddings=131072),
        "aya-23-8b": _cohere_sizes(4096, 32, 32, 8, 14336, 10_000.0),
    },
)
