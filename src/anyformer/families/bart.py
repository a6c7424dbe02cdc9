"""The 2017 Transformer (Vaswani et al., 1706.03762) as Marian writes it, BART (Lewis et al. 2020, 1910.13461), Pegasus
(Zhang et al. 2020, 1912.08777).

All are the paper's encoder-decoder. Marian keeps its sinusoids, halves instead of interleaved; BART learns its
positions and normalizes the embeddings; Pegasus is Marian with the norms first.
"""

from dataclasses import replace
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
    Fields,
    Raw,
    read_fields,
    refuse,
    special_tokens,
    their_special_tokens,
    write_fields,
)
from anyformer.families.rows import ROW, Row, alias, linear, row

_TOKENS = {
    "marian": {"pad_token_id": 58100, "eos_token_id": 0, "decoder_start_token_id": 58100},
    "bart": {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2, "decoder_start_token_id": 2},
    "pegasus": {"pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0},
}
_VOCAB = {"marian": 58101, "bart": 50265, "pegasus": 50265}

_SINUSOIDS = (r"(model\.)?(encoder|decoder)\.embed_positions\.weight",)
"""They are computed, and need no file."""


_FIELDS: Fields = {
    "d_model": ("d_model", 1024),
    "encoder_layers": ("encoder_layers", 12),
    "decoder_layers": ("decoder_layers", 12),
    "max_position_embeddings": ("max_length", 1024),
    "encoder_attention_heads": ("attention.heads", 16),
    "attention_dropout": ("attention.dropout", 0.0),
    "encoder_ffn_dim": ("feed_forward.width", 4096),
    "activation_function": ("feed_forward.activation", "gelu"),
    "activation_dropout": ("feed_forward.dropout", 0.0),
    "scale_embedding": ("embedding.scaled", False),
    "tie_word_embeddings": ("embedding.tied", True),
    "dropout": ("dropout embedding.dropout", 0.1),
}


def _read(raw: Raw, head: HeadKind, model_type: str) -> ModelConfig:
    bart, pre = model_type == "bart", model_type == "pegasus"
    refuse(raw, is_encoder_decoder=False, normalize_before=not pre, add_final_layer_norm=not pre)
    given = read_fields(raw, _FIELDS)
    tokens = special_tokens(raw, _TOKENS[model_type])
    vocab_size = raw.get("vocab_size", _VOCAB[model_type])
    shared = raw.get("share_encoder_decoder_embeddings", True)
    attention, feed_forward = AttentionConfig(**given["attention"]), FeedForwardConfig(**given["feed_forward"])
    decoder_attention = replace(attention, heads=raw.get("decoder_attention_heads", 16))
    decoder_feed_forward = replace(feed_forward, width=raw.get("decoder_ffn_dim", 4096))
    return ModelConfig(
        **given[""],
        vocab_size=vocab_size if shared else raw.get("decoder_vocab_size") or vocab_size,
        source_vocab_size=None if shared else vocab_size,
        attention=attention,
        feed_forward=feed_forward,
        decoder_attention=None if decoder_attention == attention else decoder_attention,
        decoder_feed_forward=None if decoder_feed_forward == feed_forward else decoder_feed_forward,
        position=PositionConfig(kind="learned", offset=2)
        if bart
        else PositionConfig(kind="sinusoidal", layout="halves"),
        norm=NormConfig(kind="layer", eps=1e-5, placement="pre" if pre else "post"),
        embedding=EmbeddingConfig(norm=bart, padding=tokens.pad, **given["embedding"]),
        head=HeadConfig(kind=head, bias="fixed" if head == "language_model" else "none"),
        init=InitConfig(kind="xavier")
        if model_type == "marian"
        else InitConfig(kind="normal", std=raw.get("init_std", 0.02)),
        special_tokens=tokens,
        model_type=model_type,
    )


def _write(config: ModelConfig) -> dict[str, Any]:
    eos = config.special_tokens.eos
    return {
        **write_fields(config, _FIELDS),
        "vocab_size": config.vocab_size if config.source_vocab_size is None else config.source_vocab_size,
        "decoder_attention_heads": (config.decoder_attention or config.attention).heads,
        "decoder_ffn_dim": (config.decoder_feed_forward or config.feed_forward).width,
        "is_encoder_decoder": True,
        **their_special_tokens(config.special_tokens),
        "forced_eos_token_id": eos[0] if eos else None,
    }


def _write_marian(config: ModelConfig) -> dict[str, Any]:
    shared = config.source_vocab_size is None
    vocabularies = {"decoder_vocab_size": config.vocab_size, "share_encoder_decoder_embeddings": shared}
    return {**_write(config), **vocabularies}


def _write_with_std(config: ModelConfig) -> dict[str, Any]:
    return {**_write(config), "init_std": config.init.std}


def _attention(theirs: str, ours: str) -> list[Row]:
    names = {"q_proj": "query", "k_proj": "key", "v_proj": "value", "out_proj": "output"}
    return [line for short, name in names.items() for line in linear(f"{theirs}.{short}", f"{ours}.{name}")]


def _stack(stack: str) -> list[Row]:
    """The rows of the encoder or decoder, which they and we call the same."""
    layer, block = f"model.{stack}.layers.{{i}}", f"{stack}.blocks.{{i}}"
    return [
        row(f"model.{stack}.embed_positions.weight", f"{stack}.position.table.weight"),
        *linear(f"model.{stack}.layernorm_embedding", f"{stack}.embedding.norm"),
        *_attention(f"{layer}.self_attn", f"{block}.attention"),
        *linear(f"{layer}.self_attn_layer_norm", f"{block}.attention_norm"),
        *_attention(f"{layer}.encoder_attn", f"{block}.cross_attention"),
        *linear(f"{layer}.encoder_attn_layer_norm", f"{block}.cross_attention_norm"),
        *linear(f"{layer}.fc1", f"{block}.feed_forward.up"),
        *linear(f"{layer}.fc2", f"{block}.feed_forward.down"),
        *linear(f"{layer}.final_layer_norm", f"{block}.feed_forward_norm"),
        *linear(f"model.{stack}.layer_norm", f"{stack}.final_norm"),
    ]


ROWS = [
    # Two vocabularies have a table each, one vocabulary has one table under three names.
    row("model.encoder.embed_tokens.weight", "source_embedding.table.weight"),
    row("model.decoder.embed_tokens.weight", "token_embedding.table.weight", requires="source_embedding.table.weight"),
    row("model.shared.weight", "token_embedding.table.weight"),
    alias("model.encoder.embed_tokens.weight", "token_embedding.table.weight"),
    alias("model.decoder.embed_tokens.weight", "token_embedding.table.weight"),
    *_stack("encoder"),
    *_stack("decoder"),
    row("final_logits_bias", "head.bias", ROW),
    row("lm_head.weight", "head.projection.weight"),
    alias("lm_head.weight", "token_embedding.table.weight"),
]


def _paper(d_model: int, heads: int, dropout: float) -> ModelConfig:
    """Table 3 of the 2017 paper: 6 + 6 layers, one vocabulary of 37,000 byte pairs, sinusoids as in section 3.5.

    Projections have biases and the head a zero bias that is not trained, so that with ``layout="halves"`` (as in the
    paper's code) it is a Marian model to the letter.
    """
    return ModelConfig(
        vocab_size=37_000,
        d_model=d_model,
        encoder_layers=6,
        decoder_layers=6,
        max_length=1024,
        attention=AttentionConfig(heads=heads),
        feed_forward=FeedForwardConfig(width=4 * d_model, activation="relu"),
        position=PositionConfig(kind="sinusoidal", layout="interleaved"),
        norm=NormConfig(kind="layer", placement="post"),
        embedding=EmbeddingConfig(tied=True, scaled=True, padding=0, dropout=dropout),
        head=HeadConfig(kind="language_model", bias="fixed"),
        init=InitConfig(kind="xavier"),
        dropout=dropout,
        special_tokens=SpecialTokens(eos=(1,), pad=0, decoder_start=0),
        model_type="marian",
    )


def _sizes(d_model: int, layers: int, heads: int, width: int) -> dict[str, Any]:
    sizes: dict[str, Any] = {"d_model": d_model}
    for stack in ("encoder", "decoder"):
        sizes |= {f"{stack}_layers": layers, f"{stack}_attention_heads": heads, f"{stack}_ffn_dim": width}
    return sizes


_OPUS = {**_sizes(512, 6, 8, 2048), "activation_function": "swish", "max_position_embeddings": 512}

FAMILIES = [
    Family(
        model_type="marian",
        architectures={"MarianMTModel": "language_model", "MarianModel": "none"},
        read=lambda raw, head: _read(raw, head, "marian"),
        write=_write_marian,
        rows=ROWS,
        prefix="model.",
        ignored=_SINUSOIDS,
        presets={
            "opus-mt": _read({**_OPUS, "scale_embedding": True}, "language_model", "marian"),
            "transformer-base": _paper(512, 8, 0.1),
            "transformer-big": _paper(1024, 16, 0.3),
            # For small parallel corpora such as Multi30k: fairseq's post-norm model with all embeddings shared, at the
            # size of Wu et al. 2021 ("Good for Misconceived Reasons", Transformer-Tiny; in the code of
            # LividWo/Revisit-MMT: 4 + 4 layers, width 128, feed-forward 256, 4 heads, dropout 0.3). Sines come first
            # as in fairseq, so Hugging Face opens it as a Marian model.
            "transformer-tiny": _paper(128, 4, 0.3).replace(
                vocab_size=10_000,
                encoder_layers=4,
                decoder_layers=4,
                feed_forward={"width": 256},
                position={"layout": "halves"},
            ),
        },
    ),
    Family(
        model_type="bart",
        architectures={"BartForConditionalGeneration": "language_model", "BartModel": "none"},
        read=lambda raw, head: _read(raw, head, "bart"),
        write=_write_with_std,
        rows=ROWS,
        prefix="model.",
        ignored=(r"(model\.)?(encoder|decoder)\.version",),  # fairseq's own
        presets={
            "bart-base": _read(_sizes(768, 6, 12, 3072), "language_model", "bart"),
            "bart-large": _read(_sizes(1024, 12, 16, 4096), "language_model", "bart"),
        },
    ),
    Family(
        model_type="pegasus",
        architectures={"PegasusForConditionalGeneration": "language_model", "PegasusModel": "none"},
        read=lambda raw, head: _read(raw, head, "pegasus"),
        write=_write_with_std,
        rows=ROWS,
        prefix="model.",
        ignored=_SINUSOIDS,
        presets={
            "pegasus-large": _read(
                {
                    **_sizes(1024, 16, 16, 4096),
                    "vocab_size": 96_103,
                    "activation_function": "relu",
                    "scale_embedding": True,
                    "attention_dropout": 0.1,
                    "activation_dropout": 0.1,
                },
                "language_model",
                "pegasus",
            ),
        },
    ),
]
