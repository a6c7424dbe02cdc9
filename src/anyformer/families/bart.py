"""The 2017 Transformer (Vaswani et al., 1706.03762) as Marian writes it, BART (Lewis et al. 2020, 1910.13461), mBART
(Liu et al. 2020, 2001.08210), Pegasus (Zhang et al. 2020, 1912.08777), M2M-100 (Fan et al. 2020, 2010.11125) and NLLB
(NLLB Team 2022, 2207.04672).

All are the paper's encoder-decoder. Marian keeps its sinusoids, halves instead of interleaved; BART learns its
positions and normalizes the embeddings; mBART is BART and Pegasus is Marian with the norms first; M2M-100 is Pegasus
with fairseq's sinusoids, for which padding is no position.
"""

from dataclasses import replace
from typing import Any

from anyformer.config import HeadKind, ModelConfig
from anyformer.errors import UserError
from anyformer.families.base import (
    Family,
    Raw,
    Values,
    classes,
    fields_of,
    none_if_default,
    seq2seq_head,
    special_tokens,
)
from anyformer.families.rows import ROW, Row, alias, linear, linears, row, tied

_DECODER = ("attention", "heads", "decoder_attention_heads", 16), ("feed_forward", "width", "decoder_ffn_dim", 4096)
"""Fields that a decoder has of its own: part and name in ModelConfig, name in config.json, and default."""


def _head(raw: Raw, kind: HeadKind) -> Values:
    return {**seq2seq_head(raw, kind), **({"head.bias": "fixed"} if kind == "language_model" else {})}


def _derived(raw: Raw, values: Values, head: HeadKind) -> Values:
    """The blocks of the decoder, where they are not those of the encoder, and its vocabulary."""
    own: Values = {}
    for part, field, their_name, default in _DECODER:
        shared = {name.partition(".")[2]: value for name, value in values.items() if name.startswith(f"{part}.")}
        own[f"decoder_{part}"] = none_if_default({**shared, field: raw.get(their_name, default)}, shared)
    if raw.get("share_encoder_decoder_embeddings", True):
        return own
    size = values["vocab_size"]
    return {**own, "vocab_size": raw.get("decoder_vocab_size") or size, "source_vocab_size": size}


def _written(config: ModelConfig) -> dict[str, Any]:
    eos = config.special_tokens.eos
    return {
        "vocab_size": config.source_vocab_size or config.vocab_size,
        "decoder_attention_heads": (config.decoder_attention or config.attention).heads,
        "decoder_ffn_dim": (config.decoder_feed_forward or config.feed_forward).width,
        "is_encoder_decoder": True,
        "forced_eos_token_id": eos[0] if eos else None,
    }


def _written_marian(config: ModelConfig) -> dict[str, Any]:
    own = {"decoder_vocab_size": config.vocab_size, "share_encoder_decoder_embeddings": not config.source_vocab_size}
    return {**_written(config), **own}


_ATTENTION = {"q_proj": "query", "k_proj": "key", "v_proj": "value", "out_proj": "output"}
LAYER = {
    **{f"self_attn.{theirs}": f"attention.{ours}" for theirs, ours in _ATTENTION.items()},
    "self_attn_layer_norm": "attention_norm",
    **{f"encoder_attn.{theirs}": f"cross_attention.{ours}" for theirs, ours in _ATTENTION.items()},
    "encoder_attn_layer_norm": "cross_attention_norm",
    "fc1": "feed_forward.up",
    "fc2": "feed_forward.down",
    "final_layer_norm": "feed_forward_norm",
}


def _stack(stack: str) -> list[Row]:
    """The rows of the encoder or decoder, which they and we call the same."""
    return [
        row(f"model.{stack}.embed_positions.weight", f"{stack}.position.table.weight"),
        *linear(f"model.{stack}.layernorm_embedding", f"{stack}.embedding.norm"),
        *linears(f"model.{stack}.layers.{{i}}.", f"{stack}.blocks.{{i}}.", LAYER),
        *linear(f"model.{stack}.layer_norm", f"{stack}.final_norm"),
    ]


def _sizes(d_model: int, layers: int, heads: int, width: int, **rest: Any) -> Raw:
    for stack in ("encoder", "decoder"):
        rest |= {f"{stack}_layers": layers, f"{stack}_attention_heads": heads, f"{stack}_ffn_dim": width}
    return {"d_model": d_model, **rest}


_BART = Family(
    model_type="bart",
    architectures=classes("Bart", "ForConditionalGeneration", ("Model", "ForSequenceClassification")),
    fields={
        "vocab_size": ("vocab_size", 50265),
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
        "init_std": ("init.std", 0.02),
        **special_tokens(pad=1, bos=0, eos=2, decoder_start=2),
    },
    constants={"position.offset": 2, "norm.placement": "post", "embedding.norm": True},
    refused={"is_encoder_decoder": False, "normalize_before": True, "add_final_layer_norm": True},
    derived=_derived,
    written=_written,
    read_head=_head,
    rows=[
        # Two vocabularies have a table each, one vocabulary has one table under three names.
        row("model.encoder.embed_tokens.weight", "source_embedding.table.weight"),
        row(
            "model.decoder.embed_tokens.weight",
            "token_embedding.table.weight",
            requires="source_embedding.table.weight",
        ),
        row("model.shared.weight", "token_embedding.table.weight"),
        alias("model.encoder.embed_tokens.weight", "token_embedding.table.weight", is_separate=True),
        alias("model.decoder.embed_tokens.weight", "token_embedding.table.weight", is_separate=True),
        *_stack("encoder"),
        *_stack("decoder"),
        row("final_logits_bias", "head.bias", ROW),
        *tied("lm_head"),
        *linear("classification_head.dense", "pooler.dense"),
        *linear("classification_head.out_proj", "head.labels"),
    ],
    prefix="model.",
    # The version is fairseq's own.
    ignored=(r"(model\.)?(encoder|decoder)\.version",),
    published={"bart-base": _sizes(768, 6, 12, 3072), "bart-large": {}},
)

_MBART = replace(
    _BART,
    model_type="mbart",
    architectures=classes("MBart", "ForConditionalGeneration", ("Model",)),
    fields=fields_of(_BART.fields, special_tokens(pad=1, bos=0, eos=2)),
    constants={"position.offset": 2, "embedding.norm": True},
    refused={"is_encoder_decoder": False, "normalize_before": False, "add_final_layer_norm": False},
    published={
        "mbart-large-cc25": {"vocab_size": 250_027, "scale_embedding": True},
        "mbart-large-50": {"vocab_size": 250_054, "scale_embedding": True, "activation_function": "relu"},
    },
)
_NLLB = {"vocab_size": 256_206}
_RELU: Raw = {"activation_function": "relu", "scale_embedding": True}
_PEGASUS = replace(
    _BART,
    model_type="pegasus",
    architectures=classes("Pegasus", "ForConditionalGeneration", ("Model",)),
    fields=fields_of(_BART.fields, special_tokens(pad=0, eos=1, decoder_start=0)),
    constants={"position": {"kind": "sinusoidal", "layout": "halves"}},
    refused={"is_encoder_decoder": False, "normalize_before": False, "add_final_layer_norm": False},
    # Sinusoids are computed, and need no file.
    ignored=(r"(model\.)?(encoder|decoder)\.embed_positions\.weight",),
    published={
        "pegasus-large": _sizes(
            1024, 16, 16, 4096, vocab_size=96_103, attention_dropout=0.1, activation_dropout=0.1, **_RELU
        )
    },
)


def _derived_m2m(raw: Raw, values: Values, head: HeadKind) -> Values:
    pad = values["special_tokens.pad"]
    if pad is None:
        raise UserError("config.json: M2M-100 counts its positions from pad_token_id, which is missing.")
    return {**_derived(raw, values, head), "position.offset": pad + 1}


def _written_m2m(config: ModelConfig) -> dict[str, Any]:
    # Hugging Face's default is to leave out layers at random in training.
    return {**_written(config), "encoder_layerdrop": 0.0, "decoder_layerdrop": 0.0}


_M2M = replace(
    _PEGASUS,
    model_type="m2m_100",
    architectures=classes("M2M100", "ForConditionalGeneration", ("Model",)),
    fields=fields_of(_BART.fields, vocab_size=128_112, attention_dropout=0.1, **_RELU),
    constants={"position": {"kind": "sinusoidal", "layout": "fairseq", "skip_padding": True}},
    derived=_derived_m2m,
    written=_written_m2m,
    read_head=seq2seq_head,
    ignored=(r"(model\.)?(encoder|decoder)\.(embed_positions\.weights?|version)",),
    published={
        "m2m100_418m": {},
        "m2m100_1.2b": _sizes(1024, 24, 16, 8192),
        "nllb-200-distilled-600m": _NLLB,
        "nllb-200-1.3b": _sizes(1024, 24, 16, 8192, **_NLLB),
        "nllb-200-3.3b": _sizes(2048, 24, 16, 8192, **_NLLB),
    },
)


def _paper(d_model: int, layers: int, heads: int, width: int, dropout: float, vocab_size: int = 37_000) -> Raw:
    tokens = {"eos_token_id": 1, "pad_token_id": 0, "decoder_start_token_id": 0}
    return _sizes(d_model, layers, heads, width, vocab_size=vocab_size, dropout=dropout, **_RELU, **tokens)


_MARIAN = replace(
    _PEGASUS,
    model_type="marian",
    architectures=classes("Marian", "MTModel", ("Model",)),
    fields=fields_of(
        _BART.fields, special_tokens(pad=58100, eos=0, decoder_start=58100), without=("init_std",), vocab_size=58101
    ),
    constants={**_PEGASUS.constants, "norm.placement": "post", "init.kind": "xavier"},
    refused=_BART.refused,
    written=_written_marian,
    published={
        "opus-mt": _sizes(
            512, 6, 8, 2048, activation_function="swish", max_position_embeddings=512, scale_embedding=True
        ),
        # Table 3 of the 2017 paper, one vocabulary of 37,000 byte pairs.
        "transformer-base": _paper(512, 6, 8, 2048, 0.1),
        "transformer-big": _paper(1024, 6, 16, 4096, 0.3),
        # For small parallel corpora such as Multi30k: fairseq's post-norm model with all embeddings shared, at the size
        # of Wu et al. 2021 ("Good for Misconceived Reasons", Transformer-Tiny; in the code of LividWo/Revisit-MMT).
        # Sines come first as in fairseq: to Hugging Face it is a Marian.
        "transformer-tiny": _paper(128, 4, 4, 256, 0.3, vocab_size=10_000),
    },
    # Sinusoids as in section 3.5. Projections have biases and the head a zero bias that is not trained, so that with
    # halves (as in the paper's code) it is a Marian model to the letter.
    adjusted={f"transformer-{size}": {"position.layout": "interleaved"} for size in ("base", "big")},
)
FAMILIES = [_MARIAN, _BART, _MBART, _PEGASUS, _M2M]
