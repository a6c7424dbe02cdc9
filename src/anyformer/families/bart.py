"""The 2017 Transformer (Vaswani et al., 1706.03762) as Marian writes it, BART (Lewis et al. 2020, 1910.13461), Pegasus
(Zhang et al. 2020, 1912.08777).

All are the paper's encoder-decoder. Marian keeps its sinusoids, halves instead of interleaved; BART learns its
positions and normalizes the embeddings; Pegasus is Marian with the norms first.
"""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from anyformer.config import HeadKind, ModelConfig
from anyformer.families.base import (
    Family,
    Fields,
    Raw,
    make_config,
    none_if_default,
    read_fields,
    read_seq2seq_head,
    refuse,
    write_fields,
    write_seq2seq_head,
)
from anyformer.families.rows import ROW, Row, alias, linear, linears, row

_TOKENS = {
    "marian": {"pad_token_id": 58100, "eos_token_id": 0, "decoder_start_token_id": 58100},
    "bart": {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2, "decoder_start_token_id": 2},
    "pegasus": {"pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0},
}
_VOCAB = {"marian": 58101, "bart": 50265, "pegasus": 50265}

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
    given = read_fields(raw, _FIELDS, _TOKENS[model_type])
    vocab_size = raw.get("vocab_size", _VOCAB[model_type])
    shared = raw.get("share_encoder_decoder_embeddings", True)
    config = make_config(
        given,
        model_type,
        vocab_size=vocab_size if shared else raw.get("decoder_vocab_size") or vocab_size,
        source_vocab_size=None if shared else vocab_size,
        position={"kind": "learned", "offset": 2} if bart else {"kind": "sinusoidal", "layout": "halves"},
        norm={"kind": "layer", "eps": 1e-5, "placement": "pre" if pre else "post"},
        embedding={"norm": bart, "padding": given["special_tokens"]["pad"]},
        head=read_seq2seq_head(raw, head) | ({"bias": "fixed"} if head == "language_model" else {}),
        init={"kind": "xavier"} if model_type == "marian" else {"kind": "normal", "std": raw.get("init_std", 0.02)},
    )
    attention = replace(config.attention, heads=raw.get("decoder_attention_heads", 16))
    feed_forward = replace(config.feed_forward, width=raw.get("decoder_ffn_dim", 4096))
    return replace(
        config,
        decoder_attention=none_if_default(attention, config.attention),
        decoder_feed_forward=none_if_default(feed_forward, config.feed_forward),
    )


def _write(config: ModelConfig, model_type: str) -> dict[str, Any]:
    eos, shared = config.special_tokens.eos, config.source_vocab_size is None
    if model_type == "marian":
        own = {"decoder_vocab_size": config.vocab_size, "share_encoder_decoder_embeddings": shared}
    else:
        own = {"init_std": config.init.std}
    return {
        **write_fields(config, _FIELDS),
        "vocab_size": config.vocab_size if shared else config.source_vocab_size,
        "decoder_attention_heads": (config.decoder_attention or config.attention).heads,
        "decoder_ffn_dim": (config.decoder_feed_forward or config.feed_forward).width,
        "is_encoder_decoder": True,
        "forced_eos_token_id": eos[0] if eos else None,
        **write_seq2seq_head(config.head),
        **own,
    }


_ATTENTION = {"q_proj": "query", "k_proj": "key", "v_proj": "value", "out_proj": "output"}


def _stack(stack: str) -> list[Row]:
    """The rows of the encoder or decoder, which they and we call the same."""
    layer, block = f"model.{stack}.layers.{{i}}", f"{stack}.blocks.{{i}}"
    return [
        row(f"model.{stack}.embed_positions.weight", f"{stack}.position.table.weight"),
        *linear(f"model.{stack}.layernorm_embedding", f"{stack}.embedding.norm"),
        *linears(f"{layer}.self_attn.", f"{block}.attention.", _ATTENTION),
        *linear(f"{layer}.self_attn_layer_norm", f"{block}.attention_norm"),
        *linears(f"{layer}.encoder_attn.", f"{block}.cross_attention.", _ATTENTION),
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
    *linear("classification_head.dense", "pooler.dense"),
    *linear("classification_head.out_proj", "head.labels"),
]


def _sizes(d_model: int, layers: int, heads: int, width: int, **rest: Any) -> dict[str, Any]:
    for stack in ("encoder", "decoder"):
        rest |= {f"{stack}_layers": layers, f"{stack}_attention_heads": heads, f"{stack}_ffn_dim": width}
    return {"d_model": d_model, **rest}


def _paper(d_model: int, heads: int, dropout: float) -> ModelConfig:
    """Table 3 of the 2017 paper: 6 + 6 layers, one vocabulary of 37,000 byte pairs, sinusoids as in section 3.5.

    Projections have biases and the head a zero bias that is not trained, so that with ``layout="halves"`` (as in the
    paper's code) it is a Marian model to the letter.
    """
    tokens = {"eos_token_id": 1, "pad_token_id": 0, "decoder_start_token_id": 0}
    raw = _sizes(d_model, 6, heads, 4 * d_model, vocab_size=37_000, dropout=dropout, **_RELU, **tokens)
    return _read(raw, "language_model", "marian").replace(position={"layout": "interleaved"})


_OPUS = _sizes(512, 6, 8, 2048, activation_function="swish", max_position_embeddings=512, scale_embedding=True)
_RELU = {"activation_function": "relu", "scale_embedding": True}
_PEGASUS = _sizes(1024, 16, 16, 4096, vocab_size=96_103, attention_dropout=0.1, activation_dropout=0.1, **_RELU)
# For small parallel corpora such as Multi30k: fairseq's post-norm model with all embeddings shared, at the size of Wu
# et al. 2021 ("Good for Misconceived Reasons", Transformer-Tiny; in the code of LividWo/Revisit-MMT: 4 + 4 layers,
# width 128, feed-forward 256, 4 heads, dropout 0.3). Sines come first as in fairseq: to Hugging Face it is a Marian.
_TINY = _paper(128, 4, 0.3).replace(
    vocab_size=10_000, encoder_layers=4, decoder_layers=4, feed_forward={"width": 256}, position={"layout": "halves"}
)
_PAPER = {
    "transformer-base": _paper(512, 8, 0.1),
    "transformer-big": _paper(1024, 16, 0.3),
    "transformer-tiny": _TINY,
}
_BART: dict[str, Raw] = {"bart-base": _sizes(768, 6, 12, 3072), "bart-large": _sizes(1024, 12, 16, 4096)}


def _family(
    model_type: str, name: str, heads: Mapping[str, HeadKind], presets: dict[str, Raw], **more: ModelConfig
) -> Family:
    return Family(
        model_type=model_type,
        architectures={f"{name}{head}": kind for head, kind in heads.items()},
        read=partial(_read, model_type=model_type),
        write=partial(_write, model_type=model_type),
        rows=ROWS,
        prefix="model.",
        # Sinusoids are computed, and need no file; the version is fairseq's own.
        ignored=(r"(model\.)?(encoder|decoder)\." + ("version" if name == "Bart" else r"embed_positions\.weight"),),
        presets={preset: _read(fields, "language_model", model_type) for preset, fields in presets.items()} | more,
    )


_HEADS: dict[str, HeadKind] = {"ForConditionalGeneration": "language_model", "Model": "none"}
FAMILIES = [
    _family("marian", "Marian", {"MTModel": "language_model", "Model": "none"}, {"opus-mt": _OPUS}, **_PAPER),
    _family("bart", "Bart", {**_HEADS, "ForSequenceClassification": "classification"}, _BART),
    _family("pegasus", "Pegasus", _HEADS, {"pegasus-large": _PEGASUS}),
]
