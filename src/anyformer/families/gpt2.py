"""GPT-2: "Language Models are Unsupervised Multitask Learners" (Radford et al. 2019), section 2.3."""

from typing import Any

from anyformer.config import (
    AttentionConfig,
    EmbeddingConfig,
    FeedForwardConfig,
    HeadConfig,
    HeadKind,
    InitConfig,
    ModelConfig,
    NormConfig,
    PositionConfig,
    SpecialTokens,
)
from anyformer.families.base import (
    Family,
    Raw,
    activation,
    refuse,
    special_tokens,
    their_activation,
    their_special_tokens,
)
from anyformer.families.rows import SPLIT, TRANSPOSE, alias, linear, row


def read(raw: Raw, head: HeadKind) -> ModelConfig:
    """From config.json."""
    refuse(raw, add_cross_attention=True)
    d_model = raw.get("n_embd", 768)
    return ModelConfig(
        vocab_size=raw.get("vocab_size", 50257),
        d_model=d_model,
        decoder_layers=raw.get("n_layer", 12),
        max_length=raw.get("n_positions", 1024),
        attention=AttentionConfig(
            heads=raw.get("n_head", 12),
            scale=None if raw.get("scale_attn_weights", True) else 1.0,
            scale_by_layer=raw.get("scale_attn_by_inverse_layer_idx", False),
            dropout=raw.get("attn_pdrop", 0.1),
        ),
        feed_forward=FeedForwardConfig(
            width=raw.get("n_inner") or 4 * d_model, activation=activation(raw.get("activation_function", "gelu_new"))
        ),
        position=PositionConfig(kind="learned"),
        norm=NormConfig(kind="layer", eps=raw.get("layer_norm_epsilon", 1e-5), placement="pre"),
        embedding=EmbeddingConfig(tied=raw.get("tie_word_embeddings", True), dropout=raw.get("embd_pdrop", 0.1)),
        head=HeadConfig(kind=head),
        init=InitConfig(kind="normal", std=raw.get("initializer_range", 0.02), scale_residual=True),
        dropout=raw.get("resid_pdrop", 0.1),
        special_tokens=special_tokens(raw, {"bos_token_id": 50256, "eos_token_id": 50256}),
        model_type="gpt2",
    )


def write(config: ModelConfig) -> dict[str, Any]:
    """To config.json."""
    return {
        "vocab_size": config.vocab_size,
        "n_embd": config.d_model,
        "n_layer": config.decoder_layers,
        "n_positions": config.max_length,
        "n_ctx": config.max_length,
        "n_head": config.attention.heads,
        "n_inner": None if config.feed_forward.width == 4 * config.d_model else config.feed_forward.width,
        "activation_function": their_activation(config.feed_forward.activation),
        "scale_attn_weights": config.attention.scale is None,
        "scale_attn_by_inverse_layer_idx": config.attention.scale_by_layer,
        "layer_norm_epsilon": config.norm.eps,
        "tie_word_embeddings": config.embedding.tied,
        "initializer_range": config.init.std,
        "attn_pdrop": config.attention.dropout,
        "embd_pdrop": config.embedding.dropout,
        "resid_pdrop": config.dropout,
        **their_special_tokens(config.special_tokens),
    }


_ATTENTION = "decoder.blocks.{i}.attention"
_QKV = [f"{_ATTENTION}.{part}" for part in ("query", "key", "value")]

ROWS = [
    row("transformer.wte.weight", "token_embedding.table.weight"),
    row("transformer.wpe.weight", "decoder.position.table.weight"),
    *linear("transformer.h.{i}.ln_1", "decoder.blocks.{i}.attention_norm"),
    row("transformer.h.{i}.attn.c_attn.weight", [f"{name}.weight" for name in _QKV], TRANSPOSE),
    row("transformer.h.{i}.attn.c_attn.bias", [f"{name}.bias" for name in _QKV], SPLIT),
    *linear("transformer.h.{i}.attn.c_proj", f"{_ATTENTION}.output", TRANSPOSE),
    *linear("transformer.h.{i}.ln_2", "decoder.blocks.{i}.feed_forward_norm"),
    *linear("transformer.h.{i}.mlp.c_fc", "decoder.blocks.{i}.feed_forward.up", TRANSPOSE),
    *linear("transformer.h.{i}.mlp.c_proj", "decoder.blocks.{i}.feed_forward.down", TRANSPOSE),
    *linear("transformer.ln_f", "decoder.final_norm"),
    row("lm_head.weight", "head.projection.weight"),
    alias("lm_head.weight", "token_embedding.table.weight"),
]


def _size(layers: int, d_model: int, heads: int) -> ModelConfig:
    return read({"n_layer": layers, "n_embd": d_model, "n_head": heads}, "language_model")


_BASE = _size(12, 768, 12)

FAMILY = Family(
    model_type="gpt2",
    architectures={"GPT2LMHeadModel": "language_model", "GPT2Model": "none"},
    read=read,
    write=write,
    rows=ROWS,
    prefix="transformer.",
    ignored=(r"(transformer\.)?h\.\d+\.attn\.(bias|masked_bias)",),
    presets={
        "gpt2": _BASE,
        "gpt2-medium": _size(24, 1024, 16),
        "gpt2-large": _size(36, 1280, 20),
        "gpt2-xl": _size(48, 1600, 25),
        # The size of nanoGPT's README recipe for a laptop. GPT-2's 0.02 suits its width of 768; a narrower model wants
        # the same share of 1 / sqrt(d_model).
        "gpt2-nano": _BASE.replace(
            decoder_layers=4,
            d_model=128,
            max_length=64,
            attention={"heads": 4, "dropout": 0.0},
            feed_forward={"width": 512},
            embedding={"dropout": 0.0},
            dropout=0.0,
            init={"std": 0.05},
            special_tokens=SpecialTokens(),
        ),
    },
)
