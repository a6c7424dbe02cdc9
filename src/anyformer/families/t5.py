"""T5 (Raffel et al. 2020, 1910.10683), its version 1.1 (Shazeer 2020, 2002.05202) and mT5 (Xue et al. 2021).

Version 1.0 ties the head to the token table and scales its input; version 1.1 does neither and gates the feed-forward.
"""

from dataclasses import replace
from functools import partial
from typing import Any

from anyformer.config import HeadKind, ModelConfig
from anyformer.families.base import (
    Family,
    Raw,
    Values,
    classes,
    read_activation,
    refuse,
    seq2seq_head,
    sizes,
    special_tokens,
    write_activation,
)
from anyformer.families.rows import Row, alias, linear, linears, row, tied


def _derived(raw: Raw, values: Values, head: HeadKind, *, can_scale: bool) -> Values:
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


def _written(config: ModelConfig) -> dict[str, Any]:
    scaled, gated = config.head.scaled, config.feed_forward.gated
    activation = write_activation(config.feed_forward.activation)
    activation = "gelu" if gated and activation == "gelu_new" else activation
    return {
        "num_decoder_layers": config.decoder_layers or config.encoder_layers,
        "feed_forward_proj": f"gated-{activation}" if gated else activation,
        **({"scale_decoder_outputs": scaled} if scaled != config.embedding.tied else {}),
        "is_encoder_decoder": config.is_encoder_decoder,
    }


_ATTENTION = {"q": "query", "k": "key", "v": "value", "o": "output"}


def _stack(stack: str, feed_forward_index: int) -> list[Row]:
    theirs, ours = f"{stack}.block.{{i}}.layer", f"{stack}.blocks.{{i}}"
    dense, feed_forward = f"{theirs}.{feed_forward_index}.DenseReluDense", f"{ours}.feed_forward"
    bias = "layer.0.SelfAttention.relative_attention_bias"
    return [
        row(f"{stack}.block.0.{bias}.weight", f"{stack}.position.table.weight"),
        *linears(f"{theirs}.0.SelfAttention.", f"{ours}.attention.", _ATTENTION),
        *linear(f"{theirs}.0.layer_norm", f"{ours}.attention_norm"),
        *linear(f"{dense}.wi_0", f"{feed_forward}.gate"),
        *linear(f"{dense}.wi_1", f"{feed_forward}.up", requires=f"{feed_forward}.gate.weight"),
        *linears(f"{dense}.", f"{feed_forward}.", {"wi": "up", "wo": "down"}),
        *linear(f"{theirs}.{feed_forward_index}.layer_norm", f"{ours}.feed_forward_norm"),
        *linear(f"{stack}.final_layer_norm", f"{stack}.final_norm"),
        alias(f"{stack}.embed_tokens.weight", "token_embedding.table.weight"),
    ]


_LABELS = "head.labels.weight"
_BODY = [
    row("shared.weight", "token_embedding.table.weight"),
    *_stack("encoder", 1),
    *_stack("decoder", 2),
    *linears("decoder.block.{i}.layer.1.EncDecAttention.", "decoder.blocks.{i}.cross_attention.", _ATTENTION),
    *linear("decoder.block.{i}.layer.1.layer_norm", "decoder.blocks.{i}.cross_attention_norm"),
    *tied("lm_head"),
]


def _classes(name: str) -> dict[str, HeadKind]:
    return {**classes(name, "ForConditionalGeneration"), f"{name}WithLMHeadModel": "language_model"}


_sizes = sizes("d_model num_layers num_heads d_ff")
_V11 = {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
_T5 = Family(
    model_type="t5",
    architectures=_classes("T5"),
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
    derived=partial(_derived, can_scale=True),
    written=_written,
    read_head=seq2seq_head,
    rows=[
        # Classifiers hold the model as a part, the others are it.
        *(replace(line, theirs=f"transformer.{line.theirs}", requires=(*line.requires, _LABELS)) for line in _BODY),
        *_BODY,
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
        "t5-base": _sizes(768, 12, 12, 3072),
        "t5-large": _sizes(1024, 24, 16, 4096),
        "t5-3b": _sizes(1024, 24, 32, 16384, d_kv=128),
        "t5-v1.1-small": _sizes(512, 8, 6, 1024, **_V11),
        "t5-v1.1-base": _sizes(768, 12, 12, 2048, **_V11),
        "t5-v1.1-large": _sizes(1024, 24, 16, 2816, **_V11),
        "flan-t5-small": _sizes(512, 8, 6, 1024, **_V11),
        "flan-t5-base": _sizes(768, 12, 12, 2048, **_V11),
        # To be trained on a laptop in minutes, at llama-nano's size; a run as short as that has no use for dropout.
        "t5-nano": _sizes(128, 4, 4, 256, d_kv=32, vocab_size=2048, n_positions=128, dropout_rate=0.0, **_V11),
    },
    # T5's token vectors of N(0, 1) want an optimizer whose steps are in proportion to them (Adafactor); AdamW hardly
    # moves them, so these start at 1 / sqrt(d_model).
    adjusted={"t5-nano": {"init.std": 0.09}},
)
_MT5 = replace(
    _T5,
    model_type="mt5",
    architectures=_classes("MT5"),
    derived=partial(_derived, can_scale=False),
    published={
        "mt5-small": _sizes(512, 8, 6, 1024, vocab_size=250112, **_V11),
        "mt5-base": _sizes(768, 12, 12, 2048, vocab_size=250112, **_V11),
    },
    adjusted={},
)
FAMILIES = [_T5, _MT5]
