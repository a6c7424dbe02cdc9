"""GPT-2: "Language Models are Unsupervised Multitask Learners" (Radford et al. 2019), section 2.3; OPT: "Open
Pre-trained Transformer Language Models" (Zhang et al. 2022), section 2.1: ReLU, and positions and names as in BART.
"""

from anyformer.config import HeadKind
from anyformer.errors import UserError
from anyformer.families.bart import LAYER as BART_LAYER
from anyformer.families.base import Family, Raw, Values, classes, none_if_default, sizes, special_tokens
from anyformer.families.rows import QKV, SPLIT, TRANSPOSE, linear, linears, row, tied

_LAYER, _BLOCK = "transformer.h.{i}", "decoder.blocks.{i}"
_size = sizes("n_layer n_embd n_head")
_GPT2 = Family(
    model_type="gpt2",
    architectures=classes("GPT2", "LMHeadModel"),
    fields={
        "vocab_size": ("vocab_size", 50257),
        "n_embd": ("d_model", 768),
        "n_layer": ("decoder_layers", 12),
        "n_positions": ("max_length", 1024),
        "n_head": ("attention.heads", 12),
        "scale_attn_by_inverse_layer_idx": ("attention.scale_by_layer", False),
        "n_inner": ("feed_forward.width", None),
        "activation_function": ("feed_forward.activation", "gelu_new"),
        "layer_norm_epsilon": ("norm.eps", 1e-5),
        "tie_word_embeddings": ("embedding.tied", True),
        "initializer_range": ("init.std", 0.02),
        "attn_pdrop": ("attention.dropout", 0.1),
        "embd_pdrop": ("embedding.dropout", 0.1),
        "resid_pdrop": ("dropout", 0.1),
        **special_tokens(bos=50256, eos=50256),
    },
    constants={"init.scale_residual": True, "embedding.padding": None},
    refused={"add_cross_attention": True},
    derived=lambda raw, values, head: {
        "attention.scale": None if raw.get("scale_attn_weights", True) else 1.0,
        "feed_forward.width": raw.get("n_inner") or 4 * values["d_model"],
    },
    written=lambda config: {
        "n_ctx": config.max_length,
        "n_inner": none_if_default(config.feed_forward.width, 4 * config.d_model),
        "scale_attn_weights": config.attention.scale is None,
    },
    rows=[
        row("transformer.wte.weight", "token_embedding.table.weight"),
        row("transformer.wpe.weight", "decoder.position.table.weight"),
        *linear(f"{_LAYER}.ln_1", f"{_BLOCK}.attention_norm"),
        row(f"{_LAYER}.attn.c_attn.weight", [f"{name}.weight" for name in QKV], TRANSPOSE),
        row(f"{_LAYER}.attn.c_attn.bias", [f"{name}.bias" for name in QKV], SPLIT),
        *linear(f"{_LAYER}.attn.c_proj", f"{_BLOCK}.attention.output", TRANSPOSE),
        *linear(f"{_LAYER}.ln_2", f"{_BLOCK}.feed_forward_norm"),
        *linear(f"{_LAYER}.mlp.c_fc", f"{_BLOCK}.feed_forward.up", TRANSPOSE),
        *linear(f"{_LAYER}.mlp.c_proj", f"{_BLOCK}.feed_forward.down", TRANSPOSE),
        *linear("transformer.ln_f", "decoder.final_norm"),
        *tied("lm_head"),
        # Its classifier of tokens has a bias, and that of texts another name.
        *linear("classifier", "head.labels", requires="head.labels.bias"),
        row("score.weight", "head.labels.weight"),
    ],
    prefix="transformer.",
    ignored=(r"(transformer\.)?h\.\d+\.attn\.(bias|masked_bias)",),
    published={
        "gpt2": {},
        "gpt2-medium": _size(24, 1024, 16),
        "gpt2-large": _size(36, 1280, 20),
        "gpt2-xl": _size(48, 1600, 25),
        # The size of nanoGPT's README recipe for a laptop. GPT-2's 0.02 suits its width of 768; a narrower model wants
        # the same share of 1 / sqrt(d_model).
        "gpt2-nano": {
            **_size(4, 128, 4, n_positions=64, initializer_range=0.05),
            **dict.fromkeys(("attn_pdrop", "embd_pdrop", "resid_pdrop"), 0.0),
            **dict.fromkeys(("bos_token_id", "eos_token_id")),
        },
    },
)


def _derived_opt(raw: Raw, values: Values, head: HeadKind) -> Values:
    if raw.get("word_embed_proj_dim") not in (None, values["d_model"]):
        raise UserError("config.json: OPT is supported where word_embed_proj_dim = hidden_size.")
    return {}


_opt_sizes = sizes("hidden_size num_hidden_layers num_attention_heads ffn_dim")
_OPT = Family(
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
    derived=_derived_opt,
    written=lambda config: {"word_embed_proj_dim": config.d_model, "do_layer_norm_before": True},
    rows=[
        row("model.decoder.embed_tokens.weight", "token_embedding.table.weight"),
        row("model.decoder.embed_positions.weight", "decoder.position.table.weight"),
        *linears("model.decoder.layers.{i}.", "decoder.blocks.{i}.", BART_LAYER),
        *linear("model.decoder.final_layer_norm", "decoder.final_norm"),
        *tied("lm_head"),
        row("score.weight", "head.labels.weight"),
    ],
    prefix="model.",
    published={
        "opt-125m": {},
        "opt-1.3b": _opt_sizes(2048, 24, 32, 8192),
        "opt-2.7b": _opt_sizes(2560, 32, 32, 10240),
        "opt-6.7b": _opt_sizes(4096, 32, 32, 16384),
        "opt-13b": _opt_sizes(5120, 40, 40, 20480),
        "opt-30b": _opt_sizes(7168, 48, 56, 28672),
        "opt-66b": _opt_sizes(9216, 64, 72, 36864),
    },
)
FAMILIES = [_GPT2, _OPT]
