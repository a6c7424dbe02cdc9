"""OPT: "Open Pre-trained Transformer Language Models" (Zhang et al. 2022), section 2.1."""

from typing import Any

from anyformer.config import HeadKind, ModelConfig
from anyformer.errors import UserError
from anyformer.families.base import Family, Raw, Values, classes, sizes, special_tokens
from anyformer.families.rows import linear, linears, row, tied


def _derived(raw: Raw, values: Values, head: HeadKind) -> Values:
    if raw.get("word_embed_proj_dim") not in (None, values["d_model"]):
        raise UserError("config.json: OPT is supported where word_embed_proj_dim = hidden_size.")
    return {}


def _written(config: ModelConfig) -> dict[str, Any]:
    return {"word_embed_proj_dim": config.d_model, "do_layer_norm_before": True}


_LAYER = {
    "self_attn.q_proj": "attention.query",
    "self_attn.k_proj": "attention.key",
    "self_attn.v_proj": "attention.value",
    "self_attn.out_proj": "attention.output",
    "self_attn_layer_norm": "attention_norm",
    "fc1": "feed_forward.up",
    "fc2": "feed_forward.down",
    "final_layer_norm": "feed_forward_norm",
}
_sizes = sizes("hidden_size num_hidden_layers num_attention_heads ffn_dim")
FAMILY = Family(
    model_type="opt",
    architectures=classes("OPT", "ForCausalLM", ("Model", "ForSequenceClassification")),
    fields={
        "vocab_size": ("vocab_size", 50272),
        "hidden_size": ("d_model", 768),
        "num_hidden_layers": ("decoder_layers", 12),
        "max_position_embeddings": ("max_length", 2048),
        "num_attention_heads": ("attention.heads", 12),
        "attention_dropout": ("attention.dropout", 0.0),
        "ffn_dim": ("feed_forward.width", 3072),
        "activation_function": ("feed_forward.activation", "relu"),
        "tie_word_embeddings": ("embedding.tied", True),
        "init_std": ("init.std", 0.02),
        "dropout": ("dropout", 0.1),
        **special_tokens(pad=1, bos=2, eos=2),
    },
    constants={"position.offset": 2},
    refused={
        "do_layer_norm_before": False,
        "_remove_final_layer_norm": True,
        "enable_bias": False,
        "layer_norm_elementwise_affine": False,
    },
    derived=_derived,
    written=_written,
    rows=[
        row("model.decoder.embed_tokens.weight", "token_embedding.table.weight"),
        row("model.decoder.embed_positions.weight", "decoder.position.table.weight"),
        *linears("model.decoder.layers.{i}.", "decoder.blocks.{i}.", _LAYER),
        *linear("model.decoder.final_layer_norm", "decoder.final_norm"),
        *tied("lm_head"),
        row("score.weight", "head.labels.weight"),
    ],
    prefix="model.",
    published={
        "opt-125m": {},
        "opt-1.3b": _sizes(2048, 24, 32, 8192),
        "opt-2.7b": _sizes(2560, 32, 32, 10240),
        "opt-6.7b": _sizes(4096, 32, 32, 16384),
        "opt-13b": _sizes(5120, 40, 40, 20480),
        "opt-30b": _sizes(7168, 48, 56, 28672),
        "opt-66b": _sizes(9216, 64, 72, 36864),
    },
)
