"""Encoder-decoders: the 2017 Transformer (Vaswani et al., 1706.03762) as Marian writes it, BART (Lewis et al. 2020,
1910.13461), mBART (Liu et al. 2020, 2001.08210), Pegasus (Zhang et al. 2020, 1912.08777), M2M-100 (Fan et al. 2020,
2010.11125) and NLLB (NLLB Team 2022, 2207.04672); T5 (Raffel et al. 2020, 1910.10683), its version 1.1 (Shazeer 2020,
2002.05202) and mT5 (Xue et al. 2021).

Marian keeps the paper's sinusoids, halves instead of interleaved; BART learns its positions and normalizes the
embeddings; mBART is BART and Pegasus is Marian with the norms first; M2M-100 is Pegasus with fairseq's sinusoids, for
which padding is no position. T5 1.0 has relative positions, ties the head to the token table and scales its input;
version 1.1 does neither of the two and gates the feed-forward.
"""

from dataclasses import replace
from functools import partial
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
    read_activation,
    refuse,
    seq2seq_head,
    sizes,
    special_tokens,
    write_activation,
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


def _derived_t5(raw: Raw, values: Values, head: HeadKind, *, can_scale: bool) -> Values:
    if head != "token_classification":
        refuse(raw, is_encoder_decoder=False)
    projection: str = raw.get("feed_forward_proj", "relu")
    # "gated-gelu" means the tanh approximation, as in Mesh TensorFlow.
    meant = "gelu_new" if projection == "gated-gelu" else projection.removeprefix("gated-")
    activation = raw.get("dense_act_fn") or meant
    tied: bool = values["embedding.tied"] or raw.get("tie_word_embeddings", False) is None  # null is no "is False"
    scaled = can_scale and raw.get("scale_decoder_outputs", tied)
    return {
        "embedding.tied": tied,
        # A classifier of tokens is an encoder alone, whatever config.json says of a decoder.
        "decoder_layers": 0 if head == "token_classification" else values["decoder_layers"] or values["encoder_layers"],
        "feed_forward.activation": read_activation(activation),
        "feed_forward.gated": projection.startswith("gated-"),
        "head.scaled": scaled and head == "language_model",
    }


def _written_t5(config: ModelConfig) -> dict[str, Any]:
    scaled, gated = config.head.scaled, config.feed_forward.gated
    activation = write_activation(config.feed_forward.activation)
    activation = "gelu" if gated and activation == "gelu_new" else activation
    return {
        "num_decoder_layers": config.decoder_layers or config.encoder_layers,
        "feed_forward_proj": f"gated-{activation}" if gated else activation,
        **({"scale_decoder_outputs": scaled} if scaled != config.embedding.tied else {}),
        "is_encoder_decoder": config.is_encoder_decoder,
    }


_T5_ATTENTION = {"q": "query", "k": "key", "v": "value", "o": "output"}


def _t5_stack(stack: str, feed_forward_index: int) -> list[Row]:
    theirs, ours = f"{stack}.block.{{i}}.layer", f"{stack}.blocks.{{i}}"
    dense, feed_forward = f"{theirs}.{feed_forward_index}.DenseReluDense", f"{ours}.feed_forward"
    bias = "layer.0.SelfAttention.relative_attention_bias"
    return [
        row(f"{stack}.block.0.{bias}.weight", f"{stack}.position.table.weight"),
        *linears(f"{theirs}.0.SelfAttention.", f"{ours}.attention.", _T5_ATTENTION),
        *linear(f"{theirs}.0.layer_norm", f"{ours}.attention_norm"),
        *linear(f"{dense}.wi_0", f"{feed_forward}.gate"),
        *linear(f"{dense}.wi_1", f"{feed_forward}.up", requires=f"{feed_forward}.gate.weight"),
        *linears(f"{dense}.", f"{feed_forward}.", {"wi": "up", "wo": "down"}),
        *linear(f"{theirs}.{feed_forward_index}.layer_norm", f"{ours}.feed_forward_norm"),
        *linear(f"{stack}.final_layer_norm", f"{stack}.final_norm"),
        alias(f"{stack}.embed_tokens.weight", "token_embedding.table.weight"),
    ]


_T5_LABELS = "head.labels.weight"
_T5_BODY = [
    row("shared.weight", "token_embedding.table.weight"),
    *_t5_stack("encoder", 1),
    *_t5_stack("decoder", 2),
    *linears("decoder.block.{i}.layer.1.EncDecAttention.", "decoder.blocks.{i}.cross_attention.", _T5_ATTENTION),
    *linear("decoder.block.{i}.layer.1.layer_norm", "decoder.blocks.{i}.cross_attention_norm"),
    *tied("lm_head"),
]


def _t5_classes(name: str) -> dict[str, HeadKind]:
    return {**classes(name, "ForConditionalGeneration"), f"{name}WithLMHeadModel": "language_model"}


_t5_sizes = sizes("d_model num_layers num_heads d_ff")
_V11 = {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
_T5 = Family(
    model_type="t5",
    architectures=_t5_classes("T5"),
    fields={
        "vocab_size": ("vocab_size", 32128),
        "d_model": ("d_model", 512),
        "num_layers": ("encoder_layers", 6),
        "num_decoder_layers": ("decoder_layers", None),
        "n_positions": ("max_length", 512),
        "num_heads": ("attention.heads", 8),
        "d_kv": ("attention.head_dim", 64),
        "d_ff": ("feed_forward.width", 2048),
        "relative_attention_num_buckets": ("position.buckets", 32),
        "relative_attention_max_distance": ("position.max_distance", 128),
        "layer_norm_epsilon": ("norm.eps", 1e-6),
        "tie_word_embeddings": ("embedding.tied", True),
        "dropout_rate": ("dropout attention.dropout feed_forward.dropout embedding.dropout", 0.1),
        **special_tokens(pad=0, eos=1, decoder_start=0),
    },
    constants={
        "attention": {"bias": False, "output_bias": False, "scale": 1.0},
        "feed_forward": {"bias": False},
        "position": {"kind": "relative"},
        "norm": {"kind": "rms"},
        "embedding": {"padding": None},
        "init": {"kind": "t5", "std": 1.0},
    },
    derived=partial(_derived_t5, can_scale=True),
    written=_written_t5,
    read_head=seq2seq_head,
    rows=[
        # Classifiers hold the model as a part, the others are it.
        *(
            replace(line, theirs=f"transformer.{line.theirs}", requires=(*line.requires, _T5_LABELS))
            for line in _T5_BODY
        ),
        *_T5_BODY,
        *linear("classification_head.dense", "pooler.dense"),
        *linear("classification_head.out_proj", "head.labels", requires="pooler.dense.weight"),
        *linear("classifier", "head.labels"),
    ],
    prefix="transformer.",
    # Old files have a bias for cross-attention, which the model never had.
    ignored=(r"(transformer\.)?decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight",),
    ties_missing_head=True,
    published={
        "t5-small": {},
        "t5-base": _t5_sizes(768, 12, 12, 3072),
        "t5-large": _t5_sizes(1024, 24, 16, 4096),
        "t5-3b": _t5_sizes(1024, 24, 32, 16384, d_kv=128),
        "t5-v1.1-small": _t5_sizes(512, 8, 6, 1024, **_V11),
        "t5-v1.1-base": _t5_sizes(768, 12, 12, 2048, **_V11),
        "t5-v1.1-large": _t5_sizes(1024, 24, 16, 2816, **_V11),
        "flan-t5-small": _t5_sizes(512, 8, 6, 1024, **_V11),
        "flan-t5-base": _t5_sizes(768, 12, 12, 2048, **_V11),
        # To be trained on a laptop in minutes, at llama-nano's size; a run as short as that has no use for dropout.
        "t5-nano": _t5_sizes(128, 4, 4, 256, d_kv=32, vocab_size=2048, n_positions=128, dropout_rate=0.0, **_V11),
    },
    # T5's token vectors of N(0, 1) want an optimizer whose steps are in proportion to them (Adafactor); AdamW hardly
    # moves them, so these start at 1 / sqrt(d_model).
    adjusted={"t5-nano": {"init.std": 0.09}},
)
_MT5 = replace(
    _T5,
    model_type="mt5",
    architectures=_t5_classes("MT5"),
    derived=partial(_derived_t5, can_scale=False),
    published={
        "mt5-small": _t5_sizes(512, 8, 6, 1024, vocab_size=250112, **_V11),
        "mt5-base": _t5_sizes(768, 12, 12, 2048, vocab_size=250112, **_V11),
    },
    adjusted={},
)
FAMILIES = [_T5, _MT5, _MARIAN, _BART, _MBART, _PEGASUS, _M2M]
