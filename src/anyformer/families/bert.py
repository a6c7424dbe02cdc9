"""BERT (Devlin et al. 2019, 1810.04805), RoBERTa (Liu et al. 2019, 1907.11692) and DistilBERT (Sanh et al. 2019).

RoBERTa is BERT with positions counted from `padding + 1`; DistilBERT is BERT without segments, under other names.
"""

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
)
from anyformer.errors import UserError
from anyformer.families.base import (
    Family,
    Fields,
    Raw,
    activation,
    labels,
    read_fields,
    refuse,
    special_tokens,
    their_labels,
    their_special_tokens,
    write_fields,
)
from anyformer.families.rows import Row, alias, linear, row

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


def _read(
    raw: Raw, fields: Fields, head: HeadConfig, padding: int | None, tokens: Raw, model_type: str, **position: Any
) -> ModelConfig:
    refuse(raw, is_decoder=True, add_cross_attention=True)
    given = read_fields(raw, fields)
    norm: dict[str, Any] = {"eps": 1e-12, **given["norm"]}
    return ModelConfig(
        **given[""],
        max_length=raw.get("max_position_embeddings", 512) - position.get("offset", 0),
        attention=AttentionConfig(**given["attention"]),
        feed_forward=FeedForwardConfig(**given["feed_forward"]),
        position=PositionConfig(kind="learned", **position),
        norm=NormConfig(kind="layer", placement="post", **norm),
        embedding=EmbeddingConfig(norm=True, padding=padding, **given["embedding"]),
        head=head,
        init=InitConfig(kind="truncated_normal" if model_type == "bert" else "normal", **given["init"]),
        special_tokens=special_tokens(raw, tokens),
        model_type=model_type,
    )


def _write(config: ModelConfig, fields: Fields) -> dict[str, Any]:
    return {
        **write_fields(config, fields),
        "max_position_embeddings": config.max_length + config.position.offset,
        **their_labels(config.head),
        **their_special_tokens(config.special_tokens),
    }


def _head(raw: Raw, kind: HeadKind, transform: str, pooler: str | None, dropout: float) -> HeadConfig:
    """The head with the parts that its kind has; `pooler` is what pools before a classifier or in a bare model."""
    if kind == "language_model":
        return HeadConfig(kind=kind, transform=transform, bias="learned")
    if kind == "token_classification":
        return HeadConfig(kind=kind, labels=labels(raw), dropout=dropout)
    if kind == "classification":
        return HeadConfig(kind=kind, labels=labels(raw), pooler=pooler, dropout=dropout)
    return HeadConfig(kind="none", pooler=pooler)


def read_bert(raw: Raw, kind: HeadKind) -> ModelConfig:
    """BERT's config.json."""
    head = _head(raw, kind, activation(raw.get("hidden_act", "gelu")), "tanh", _classifier_dropout(raw))
    return _read(raw, _FIELDS, head, raw.get("pad_token_id", 0), {"pad_token_id": 0}, "bert")


def read_roberta(raw: Raw, kind: HeadKind) -> ModelConfig:
    """RoBERTa's config.json, which has the same fields."""
    pad = raw.get("pad_token_id", 1)
    if pad is None:
        raise UserError("config.json: RoBERTa counts its positions from pad_token_id, which is missing.")
    head = _head(raw, kind, "gelu", "tanh", _classifier_dropout(raw))
    tokens = {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}
    raw = {"vocab_size": 50265, **raw}
    return _read(raw, _FIELDS, head, pad, tokens, "roberta", offset=pad + 1, skip_padding=True)


def _classifier_dropout(raw: Raw) -> float:
    dropout = raw.get("classifier_dropout")
    return raw.get("hidden_dropout_prob", 0.1) if dropout is None else dropout


def write_bert(config: ModelConfig) -> dict[str, Any]:
    """The inverse of `read_bert` and `read_roberta`."""
    classifies = config.head.kind in ("classification", "token_classification")
    return {**_write(config, _FIELDS), "classifier_dropout": config.head.dropout if classifies else None}


def read_distilbert(raw: Raw, kind: HeadKind) -> ModelConfig:
    """DistilBERT's config.json."""
    dropout = raw.get("seq_classif_dropout", 0.2) if kind == "classification" else raw.get("dropout", 0.1)
    pooler = "relu" if kind == "classification" else None
    head = _head(raw, kind, activation(raw.get("activation", "gelu")), pooler, dropout)
    return _read(raw, _DISTILBERT_FIELDS, head, raw.get("pad_token_id", 0), {"pad_token_id": 0}, "distilbert")


def write_distilbert(config: ModelConfig) -> dict[str, Any]:
    """The inverse of `read_distilbert`."""
    written = _write(config, _DISTILBERT_FIELDS)
    return {**written, "seq_classif_dropout": config.head.dropout} if config.head.kind == "classification" else written


_BLOCK = "encoder.blocks.{i}"


def _body(prefix: str) -> list[Row]:
    layer = f"{prefix}encoder.layer.{{i}}"
    return [
        row(f"{prefix}embeddings.word_embeddings.weight", "token_embedding.table.weight"),
        row(f"{prefix}embeddings.position_embeddings.weight", "encoder.position.table.weight"),
        row(f"{prefix}embeddings.token_type_embeddings.weight", "encoder.embedding.segments.weight"),
        *linear(f"{prefix}embeddings.LayerNorm", "encoder.embedding.norm"),
        *linear(f"{layer}.attention.self.query", f"{_BLOCK}.attention.query"),
        *linear(f"{layer}.attention.self.key", f"{_BLOCK}.attention.key"),
        *linear(f"{layer}.attention.self.value", f"{_BLOCK}.attention.value"),
        *linear(f"{layer}.attention.output.dense", f"{_BLOCK}.attention.output"),
        *linear(f"{layer}.attention.output.LayerNorm", f"{_BLOCK}.attention_norm"),
        *linear(f"{layer}.intermediate.dense", f"{_BLOCK}.feed_forward.up"),
        *linear(f"{layer}.output.dense", f"{_BLOCK}.feed_forward.down"),
        *linear(f"{layer}.output.LayerNorm", f"{_BLOCK}.feed_forward_norm"),
    ]


BERT_ROWS = [
    *_body("bert."),
    *linear("bert.pooler.dense", "pooler.dense"),
    *linear("cls.predictions.transform.dense", "head.transform.dense"),
    *linear("cls.predictions.transform.LayerNorm", "head.transform.norm"),
    row("cls.predictions.bias", "head.bias"),
    alias("cls.predictions.decoder.bias", "head.bias"),
    row("cls.predictions.decoder.weight", "head.projection.weight"),
    alias("cls.predictions.decoder.weight", "token_embedding.table.weight"),
    *linear("classifier", "head.labels"),
]

ROBERTA_ROWS = [
    *_body("roberta."),
    *linear("lm_head.dense", "head.transform.dense"),
    *linear("lm_head.layer_norm", "head.transform.norm"),
    row("lm_head.bias", "head.bias"),
    alias("lm_head.decoder.bias", "head.bias"),
    row("lm_head.decoder.weight", "head.projection.weight"),
    alias("lm_head.decoder.weight", "token_embedding.table.weight"),
    # The pooler of a bare RoBERTa and the dense layer of its classifier are one thing to us and two names to them.
    *linear("classifier.dense", "pooler.dense", requires="head.labels.weight"),
    *linear("classifier.out_proj", "head.labels", requires="pooler.dense.weight"),
    *linear("roberta.pooler.dense", "pooler.dense"),
    *linear("classifier", "head.labels"),
]

_LAYER = "distilbert.transformer.layer.{i}"
DISTILBERT_ROWS = [
    row("distilbert.embeddings.word_embeddings.weight", "token_embedding.table.weight"),
    row("distilbert.embeddings.position_embeddings.weight", "encoder.position.table.weight"),
    *linear("distilbert.embeddings.LayerNorm", "encoder.embedding.norm"),
    *linear(f"{_LAYER}.attention.q_lin", f"{_BLOCK}.attention.query"),
    *linear(f"{_LAYER}.attention.k_lin", f"{_BLOCK}.attention.key"),
    *linear(f"{_LAYER}.attention.v_lin", f"{_BLOCK}.attention.value"),
    *linear(f"{_LAYER}.attention.out_lin", f"{_BLOCK}.attention.output"),
    *linear(f"{_LAYER}.sa_layer_norm", f"{_BLOCK}.attention_norm"),
    *linear(f"{_LAYER}.ffn.lin1", f"{_BLOCK}.feed_forward.up"),
    *linear(f"{_LAYER}.ffn.lin2", f"{_BLOCK}.feed_forward.down"),
    *linear(f"{_LAYER}.output_layer_norm", f"{_BLOCK}.feed_forward_norm"),
    *linear("pre_classifier", "pooler.dense"),
    *linear("classifier", "head.labels"),
    *linear("vocab_transform", "head.transform.dense"),
    *linear("vocab_layer_norm", "head.transform.norm"),
    row("vocab_projector.bias", "head.bias"),
    row("vocab_projector.weight", "head.projection.weight"),
    alias("vocab_projector.weight", "token_embedding.table.weight"),
]

_LEGACY = (
    r"(.*\.)?embeddings\.position_ids",
    r"cls\.seq_relationship\.(weight|bias)",
    r"(.*\.)?pooler\.dense\.(weight|bias)",
)
_TENSORFLOW_NAMES = ((r"LayerNorm\.gamma$", "LayerNorm.weight"), (r"LayerNorm\.beta$", "LayerNorm.bias"))


def _architectures(name: str) -> dict[str, HeadKind]:
    return {
        f"{name}ForMaskedLM": "language_model",
        f"{name}Model": "none",
        f"{name}ForSequenceClassification": "classification",
        f"{name}ForTokenClassification": "token_classification",
    }


def _bert(d_model: int, layers: int, heads: int) -> ModelConfig:
    sizes = {"hidden_size": d_model, "num_hidden_layers": layers, "num_attention_heads": heads}
    return read_bert({**sizes, "intermediate_size": 4 * d_model}, "language_model")


def _roberta(d_model: int, layers: int, heads: int) -> ModelConfig:
    sizes = {"hidden_size": d_model, "num_hidden_layers": layers, "num_attention_heads": heads}
    rest = {"intermediate_size": 4 * d_model, "max_position_embeddings": 514, "type_vocab_size": 1}
    return read_roberta({**sizes, **rest, "layer_norm_eps": 1e-5}, "language_model")


FAMILIES = [
    Family(
        model_type="bert",
        architectures=_architectures("Bert"),
        read=read_bert,
        write=write_bert,
        rows=BERT_ROWS,
        prefix="bert.",
        ignored=_LEGACY,
        renamed=_TENSORFLOW_NAMES,
        presets={
            "bert-base": _bert(768, 12, 12),
            "bert-large": _bert(1024, 24, 16),
            "bert-tiny": _bert(128, 2, 2),
            "bert-mini": _bert(256, 4, 4),
        },
    ),
    Family(
        model_type="roberta",
        architectures=_architectures("Roberta"),
        read=read_roberta,
        write=write_bert,
        rows=ROBERTA_ROWS,
        prefix="roberta.",
        ignored=_LEGACY,
        renamed=_TENSORFLOW_NAMES,
        presets={"roberta-base": _roberta(768, 12, 12), "roberta-large": _roberta(1024, 24, 16)},
    ),
    Family(
        model_type="distilbert",
        architectures=_architectures("DistilBert"),
        read=read_distilbert,
        write=write_distilbert,
        rows=DISTILBERT_ROWS,
        prefix="distilbert.",
        ignored=_LEGACY,
        renamed=_TENSORFLOW_NAMES,
        presets={"distilbert-base": read_distilbert({}, "language_model")},
    ),
]
