"""BERT (Devlin et al. 2019, 1810.04805), RoBERTa (Liu et al. 2019, 1907.11692) and DistilBERT (Sanh et al. 2019).

RoBERTa is BERT with positions counted from `padding + 1`; DistilBERT is BERT without segments, under other names.
"""

from functools import partial
from typing import Any

from anyformer.config import HeadKind, ModelConfig
from anyformer.errors import UserError
from anyformer.families.base import (
    CLASSIFIERS,
    Family,
    Fields,
    Raw,
    make_config,
    read_fields,
    read_labels,
    refuse,
    write_fields,
    write_labels,
)
from anyformer.families.rows import Row, alias, linear, linears, row

_FIELDS: Fields = {
    "vocab_size": ("vocab_size", 30522),
    "hidden_size": ("d_model", 768),
    "num_hidden_layers": ("encoder_layers", 12),
    "num_attention_heads": ("attention.heads", 12),
    "attention_probs_dropout_prob": ("attention.dropout", 0.1),
    "intermediate_size": ("feed_forward.width", 3072),
    "hidden_act": ("feed_forward.activation", "gelu"),
    "layer_norm_eps": ("norm.eps", 1e-12),
    "type_vocab_size": ("embedding.segments", 2),
    "tie_word_embeddings": ("embedding.tied", True),
    "hidden_dropout_prob": ("dropout embedding.dropout", 0.1),
    "initializer_range": ("init.std", 0.02),
}
_DISTILBERT_FIELDS: Fields = {
    "vocab_size": ("vocab_size", 30522),
    "dim": ("d_model", 768),
    "n_layers": ("encoder_layers", 6),
    "n_heads": ("attention.heads", 12),
    "attention_dropout": ("attention.dropout", 0.1),
    "hidden_dim": ("feed_forward.width", 3072),
    "activation": ("feed_forward.activation", "gelu"),
    "tie_word_embeddings": ("embedding.tied", True),
    "dropout": ("dropout embedding.dropout", 0.1),
    "initializer_range": ("init.std", 0.02),
}
_TOKENS = {
    "bert": {"pad_token_id": 0},
    "roberta": {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2},
    "distilbert": {"pad_token_id": 0},
}


def _read(raw: Raw, kind: HeadKind, model_type: str) -> ModelConfig:
    refuse(raw, is_decoder=True, add_cross_attention=True)
    distilbert, roberta = model_type == "distilbert", model_type == "roberta"
    raw = {"vocab_size": 50265, **raw} if roberta else raw
    given = read_fields(raw, _DISTILBERT_FIELDS if distilbert else _FIELDS, _TOKENS[model_type])
    # The classifier of a DistilBERT has a layer before it, which a bare model lacks.
    pooler = None if distilbert and kind != "classification" else "relu" if distilbert else "tanh"
    head: dict[str, Any] = {"kind": kind}
    if kind == "language_model":
        transform = "gelu" if roberta else given["feed_forward"]["activation"]
        head |= {"transform": transform, "bias": "learned"}
    else:
        head["pooler"] = None if kind == "token_classification" else pooler
    if kind in CLASSIFIERS:
        dropout = raw.get("classifier_dropout")
        if distilbert and kind == "classification":
            dropout = raw.get("seq_classif_dropout", 0.2)
        elif distilbert or dropout is None:
            dropout = given[""]["dropout"]
        head |= {**read_labels(raw, kind), "dropout": dropout}
    pad = given["special_tokens"]["pad"]
    position: dict[str, Any] = {"kind": "learned"}
    if roberta:
        if pad is None:
            raise UserError("config.json: RoBERTa counts its positions from pad_token_id, which is missing.")
        position |= {"offset": pad + 1, "skip_padding": True}
    return make_config(
        given,
        model_type,
        max_length=raw.get("max_position_embeddings", 512) - position.get("offset", 0),
        position=position,
        norm={"kind": "layer", "placement": "post", "eps": 1e-12},
        embedding={"norm": True, "padding": pad},
        head=head,
        init={"kind": "truncated_normal" if model_type == "bert" else "normal"},
    )


def _write(config: ModelConfig, model_type: str) -> dict[str, Any]:
    kind, dropout = config.head.kind, config.head.dropout
    classifier = write_labels(config.head)
    if model_type != "distilbert":
        classifier["classifier_dropout"] = dropout if kind in CLASSIFIERS else None
    elif kind == "classification":
        classifier["seq_classif_dropout"] = dropout
    return {
        **write_fields(config, _DISTILBERT_FIELDS if model_type == "distilbert" else _FIELDS),
        "max_position_embeddings": config.max_length + config.position.offset,
        **classifier,
    }


_BLOCK = "encoder.blocks.{i}"


def _body(prefix: str) -> list[Row]:
    layer = f"{prefix}encoder.layer.{{i}}"
    return [
        row(f"{prefix}embeddings.word_embeddings.weight", "token_embedding.table.weight"),
        row(f"{prefix}embeddings.position_embeddings.weight", "encoder.position.table.weight"),
        row(f"{prefix}embeddings.token_type_embeddings.weight", "encoder.embedding.segments.weight"),
        *linear(f"{prefix}embeddings.LayerNorm", "encoder.embedding.norm"),
        *linears(f"{layer}.attention.self.", f"{_BLOCK}.attention.", {n: n for n in ("query", "key", "value")}),
        *linear(f"{layer}.attention.output.dense", f"{_BLOCK}.attention.output"),
        *linear(f"{layer}.attention.output.LayerNorm", f"{_BLOCK}.attention_norm"),
        *linear(f"{layer}.intermediate.dense", f"{_BLOCK}.feed_forward.up"),
        *linear(f"{layer}.output.dense", f"{_BLOCK}.feed_forward.down"),
        *linear(f"{layer}.output.LayerNorm", f"{_BLOCK}.feed_forward_norm"),
    ]


def _masked_lm(transform: str, norm: str, bias: str, decoder: str) -> list[Row]:
    return [
        *linear(transform, "head.transform.dense"),
        *linear(norm, "head.transform.norm"),
        row(f"{bias}.bias", "head.bias"),
        alias(f"{decoder}.bias", "head.bias"),
        row(f"{decoder}.weight", "head.projection.weight"),
        alias(f"{decoder}.weight", "token_embedding.table.weight"),
    ]


_CLS = "cls.predictions"
BERT_ROWS = [
    *_body("bert."),
    *linear("bert.pooler.dense", "pooler.dense"),
    *_masked_lm(f"{_CLS}.transform.dense", f"{_CLS}.transform.LayerNorm", _CLS, f"{_CLS}.decoder"),
    *linear("classifier", "head.labels"),
]
ROBERTA_ROWS = [
    *_body("roberta."),
    *_masked_lm("lm_head.dense", "lm_head.layer_norm", "lm_head", "lm_head.decoder"),
    # The pooler of a bare RoBERTa and the dense layer of its classifier are one thing to us and two names to them.
    *linear("classifier.dense", "pooler.dense", requires="head.labels.weight"),
    *linear("classifier.out_proj", "head.labels", requires="pooler.dense.weight"),
    *linear("roberta.pooler.dense", "pooler.dense"),
    *linear("classifier", "head.labels"),
]
_DISTILBERT_LAYER = {
    "attention.q_lin": "attention.query",
    "attention.k_lin": "attention.key",
    "attention.v_lin": "attention.value",
    "attention.out_lin": "attention.output",
    "sa_layer_norm": "attention_norm",
    "ffn.lin1": "feed_forward.up",
    "ffn.lin2": "feed_forward.down",
    "output_layer_norm": "feed_forward_norm",
}
DISTILBERT_ROWS = [
    row("distilbert.embeddings.word_embeddings.weight", "token_embedding.table.weight"),
    row("distilbert.embeddings.position_embeddings.weight", "encoder.position.table.weight"),
    *linear("distilbert.embeddings.LayerNorm", "encoder.embedding.norm"),
    *linears("distilbert.transformer.layer.{i}.", f"{_BLOCK}.", _DISTILBERT_LAYER),
    *linear("pre_classifier", "pooler.dense"),
    *linear("classifier", "head.labels"),
    *_masked_lm("vocab_transform", "vocab_layer_norm", "vocab_projector", "vocab_projector"),
]

_LEGACY = (
    r"(.*\.)?embeddings\.position_ids",
    r"cls\.seq_relationship\.(weight|bias)",
    r"(.*\.)?pooler\.dense\.(weight|bias)",
)
_TENSORFLOW_NAMES = ((r"LayerNorm\.gamma$", "LayerNorm.weight"), (r"LayerNorm\.beta$", "LayerNorm.bias"))


def _sizes(d_model: int, layers: int, heads: int, **more: Any) -> dict[str, Any]:
    sizes = {"hidden_size": d_model, "num_hidden_layers": layers, "num_attention_heads": heads}
    return {**sizes, "intermediate_size": 4 * d_model, **more}


def _family(model_type: str, name: str, rows: list[Row], presets: dict[str, Raw]) -> Family:
    return Family(
        model_type=model_type,
        architectures={
            f"{name}ForMaskedLM": "language_model",
            f"{name}Model": "none",
            f"{name}ForSequenceClassification": "classification",
            f"{name}ForTokenClassification": "token_classification",
        },
        read=partial(_read, model_type=model_type),
        write=partial(_write, model_type=model_type),
        rows=rows,
        prefix=f"{model_type}.",
        ignored=_LEGACY,
        renamed=_TENSORFLOW_NAMES,
        presets={preset: _read(fields, "language_model", model_type) for preset, fields in presets.items()},
    )


_BERT: dict[str, Raw] = {
    "bert-base": _sizes(768, 12, 12),
    "bert-large": _sizes(1024, 24, 16),
    "bert-tiny": _sizes(128, 2, 2),
    "bert-mini": _sizes(256, 4, 4),
}
_ROBERTA = {"max_position_embeddings": 514, "type_vocab_size": 1, "layer_norm_eps": 1e-5}
FAMILIES = [
    _family("bert", "Bert", BERT_ROWS, _BERT),
    _family(
        "roberta",
        "Roberta",
        ROBERTA_ROWS,
        {"roberta-base": _sizes(768, 12, 12, **_ROBERTA), "roberta-large": _sizes(1024, 24, 16, **_ROBERTA)},
    ),
    _family("distilbert", "DistilBert", DISTILBERT_ROWS, {"distilbert-base": {}}),
]
