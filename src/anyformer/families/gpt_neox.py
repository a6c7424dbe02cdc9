"""GPT-NeoX (Black et al. 2022, 2204.06745), section 2.1, and Pythia (Biderman et al. 2023, 2304.01373), section 2."""

from collections.abc import Sequence
from typing import Any

from anyformer.config import HeadKind, ModelConfig
from anyformer.families.base import (
    Family,
    Raw,
    Values,
    classes,
    decoder_head,
    head_operations,
    sizes,
    special_tokens,
)
from anyformer.families.llama import read_rope, write_rope
from anyformer.families.rows import Row, linear, linears, row, tied


def _derived(raw: Raw, values: Values, head: HeadKind) -> Values:
    placement = "parallel" if raw.get("use_parallel_residual", True) else "pre"
    return {**read_rope(raw, values, head), "norm.placement": placement}


def _written(config: ModelConfig) -> dict[str, Any]:
    return {**write_rope(config), "use_parallel_residual": config.norm.placement == "parallel"}


_LAYER = {
    "input_layernorm": "attention_norm",
    "attention.dense": "attention.output",
    "post_attention_layernorm": "feed_forward_norm",
    "mlp.dense_h_to_4h": "feed_forward.up",
    "mlp.dense_4h_to_h": "feed_forward.down",
}
_QKV = [f"decoder.blocks.{{i}}.attention.{part}" for part in ("query", "key", "value")]


def _rows(config: ModelConfig) -> Sequence[Row]:
    per_head = head_operations(config)(1, 1, 1, groups=config.attention.heads)
    return [
        row("gpt_neox.embed_in.weight", "token_embedding.table.weight"),
        *linears("gpt_neox.layers.{i}.", "decoder.blocks.{i}.", _LAYER),
        *linear("gpt_neox.layers.{i}.attention.query_key_value", _QKV, per_head),
        *linear("gpt_neox.final_layer_norm", "decoder.final_norm"),
        *tied("embed_out"),
        *linear("classifier", "head.labels", requires="head.labels.bias"),
        row("score.weight", "head.labels.weight"),
    ]


_sizes = sizes("hidden_size num_hidden_layers num_attention_heads intermediate_size")
_PYTHIA = {"vocab_size": 50304, "eos_token_id": 0}
FAMILY = Family(
    model_type="gpt_neox",
    architectures=classes("GPTNeoX", "ForCausalLM"),
    fields={
        "vocab_size": ("vocab_size", 50432),
        "hidden_size": ("d_model", 6144),
        "num_hidden_layers": ("decoder_layers", 44),
        "max_position_embeddings": ("max_length", 2048),
        "num_attention_heads": ("attention.heads", 64),
        "attention_bias": ("attention.bias attention.output_bias", True),
        "attention_dropout": ("attention.dropout", 0.0),
        "intermediate_size": ("feed_forward.width", 24576),
        "hidden_act": ("feed_forward.activation", "gelu"),
        "rotary_emb_base": ("position.theta", 10_000.0),
        "rotary_pct": ("position.rotary_fraction", 0.25),
        "layer_norm_eps": ("norm.eps", 1e-5),
        "tie_word_embeddings": ("embedding.tied", False),
        "initializer_range": ("init.std", 0.02),
        "hidden_dropout": ("dropout embedding.dropout", 0.0),
        **special_tokens(bos=0, eos=2),
    },
    constants={"position.kind": "rotary", "embedding.padding": None},
    derived=_derived,
    written=_written,
    read_head=lambda raw, kind: decoder_head(raw, kind, dropout=0.1),
    rows=_rows,
    prefix="gpt_neox.",
    ignored=(r"(gpt_neox\.)?layers\.\d+\.attention\.(bias|masked_bias|rotary_emb\.inv_freq)",),
    renamed=((r"^lm_head\.", "embed_out."),),
    published={
        "pythia-70m": _sizes(512, 6, 8, 2048, **_PYTHIA),
        "pythia-14m": _sizes(128, 6, 4, 512, **_PYTHIA),
        "pythia-160m": _sizes(768, 12, 12, 3072, **_PYTHIA),
        "pythia-410m": _sizes(1024, 24, 16, 4096, **_PYTHIA),
        "pythia-1b": _sizes(2048, 16, 8, 8192, **_PYTHIA),
        "pythia-1.4b": _sizes(2048, 24, 16, 8192, **_PYTHIA),
        "pythia-2.8b": _sizes(2560, 32, 32, 10240, **_PYTHIA),
        "pythia-6.9b": _sizes(4096, 32, 32, 16384, **{**_PYTHIA, "vocab_size": 50432}),
        "pythia-12b": _sizes(5120, 36, 40, 20480, **{**_PYTHIA, "vocab_size": 50688}),
        "gpt-neox-20b": {"hidden_act": "gelu_fast", "eos_token_id": 0},
    },
)
