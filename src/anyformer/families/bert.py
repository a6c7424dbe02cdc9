"""BERT (Devlin et al. 2019, 1810.04805), RoBERTa (Liu et al. 2019, 1907.11692), XLM-R (Conneau et al. 2020, 1911.02116)
and DistilBERT (Sanh et al. 2019).

RoBERTa is BERT with positions counted from `padding + 1`, XLM-R is RoBERTa with 250,002 tokens of a hundred languages;
DistilBERT is BERT without segments, under other names.
"""

from dataclasses import replace
from typing import Any

from anyformer.config import HeadConfig, HeadKind, ModelConfig
from anyformer.errors import UserError
from anyformer.families.base import (
    CLASSIFIERS,
    Family,
    Raw,
    Values,
    classes,
    plain_head,
    sizes,
    special_tokens,
    write_labels,
)
from anyformer.families.rows import Row, alias, linear, linears, row, tied


def derived(raw: Raw, values: Values, kind: HeadKind, pooler: str | None = "tanh") -> Values:
    """The head's layers. A classifier without a rate of its own has the model's."""
    if kind == "language_model":
        return {"head.transform": values["feed_forward.activation"], "head.bias": "learned"}
    own = raw.get("classifier_dropout")
    dropout = {"head.dropout": values["dropout"] if own is None else own} if kind in CLASSIFIERS else {}
    return {"head.pooler": None if kind == "token_classification" else pooler, **dropout}


def _derived_roberta(raw: Raw, values: Values, kind: HeadKind) -> Values:
    pad = values["special_tokens.pad"]
    if pad is None:
        raise UserError("config.json: RoBERTa counts its positions from pad_token_id, which is missing.")
    transform = {"head.transform": "gelu"} if kind == "language_model" else {}
    offset = {"position.offset": pad + 1, "max_length": values["max_length"] - (pad + 1)}
    return {**derived(raw, values, kind), **transform, **offset}


def _written_roberta(config: ModelConfig) -> dict[str, Any]:
    return {"max_position_embeddings": config.max_length + config.position.offset}


def _derived_distilbert(raw: Raw, values: Values, kind: HeadKind) -> Values:
    # The classifier of texts has a layer before it, which a bare model lacks, and that of tokens no rate of its own.
    of_texts = kind == "classification"
    rate = {"classifier_dropout": raw.get("seq_classif_dropout", 0.2) if of_texts else None}
    return derived(rate, values, kind, "relu" if of_texts else None)


def write_head(head: HeadConfig) -> dict[str, Any]:
    """The fields of config.json with the labels and dropout of a classifier."""
    return {**write_labels(head), "classifier_dropout": head.dropout if head.kind in CLASSIFIERS else None}


def _write_distilbert_head(head: HeadConfig) -> dict[str, Any]:
    dropout = {"seq_classif_dropout": head.dropout} if head.kind == "classification" else {}
    return {**write_labels(head), **dropout}


LAYER = {
    "attention.self.query": "attention.query",
    "attention.self.key": "attention.key",
    "attention.self.value": "attention.value",
    "attention.output.dense": "attention.output",
    "attention.output.LayerNorm": "attention_norm",
    "intermediate.dense": "feed_forward.up",
    "output.dense": "feed_forward.down",
    "output.LayerNorm": "feed_forward_norm",
}
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


def body(prefix: str, layer: str, layers: dict[str, str]) -> list[Row]:
    """The rows of an encoder whose embeddings have BERT's names, and its layers other ones."""
    return [
        row(f"{prefix}embeddings.word_embeddings.weight", "token_embedding.table.weight"),
        row(f"{prefix}embeddings.position_embeddings.weight", "encoder.position.table.weight"),
        row(f"{prefix}embeddings.token_type_embeddings.weight", "encoder.embedding.segments.weight"),
        *linear(f"{prefix}embeddings.LayerNorm", "encoder.embedding.norm"),
        *linears(f"{prefix}{layer}.{{i}}.", "encoder.blocks.{i}.", layers),
    ]


def masked_lm(transform: str, norm: str, bias: str, decoder: str) -> list[Row]:
    """The rows of a head of a masked language model with a transform, by what comes before "weight" and "bias"."""
    return [
        *linear(transform, "head.transform.dense"),
        *linear(norm, "head.transform.norm"),
        row(f"{bias}.bias", "head.bias"),
        alias(f"{decoder}.bias", "head.bias"),
        *tied(decoder),
    ]


_sizes = sizes("hidden_size num_hidden_layers num_attention_heads intermediate_size")
_CLS = "cls.predictions"
BERT = Family(
    model_type="bert",
    architectures=classes("Bert", "ForMaskedLM"),
    fields={
        "vocab_size": ("vocab_size", 30522),
        "hidden_size": ("d_model", 768),
        "num_hidden_layers": ("encoder_layers", 12),
        "max_position_embeddings": ("max_length", 512),
        "num_attention_heads": ("attention.heads", 12),
        "attention_probs_dropout_prob": ("attention.dropout", 0.1),
        "intermediate_size": ("feed_forward.width", 3072),
        "hidden_act": ("feed_forward.activation", "gelu"),
        "layer_norm_eps": ("norm.eps", 1e-12),
        "type_vocab_size": ("embedding.segments", 2),
        "tie_word_embeddings": ("embedding.tied", True),
        "hidden_dropout_prob": ("dropout embedding.dropout", 0.1),
        "initializer_range": ("init.std", 0.02),
        **special_tokens(pad=0),
    },
    constants={"norm.placement": "post", "embedding.norm": True, "init.kind": "truncated_normal"},
    refused={"is_decoder": True, "add_cross_attention": True},
    derived=derived,
    read_head=plain_head,
    write_head=write_head,
    rows=[
        *body("bert.", "encoder.layer", LAYER),
        *linear("bert.pooler.dense", "pooler.dense"),
        *masked_lm(f"{_CLS}.transform.dense", f"{_CLS}.transform.LayerNorm", _CLS, f"{_CLS}.decoder"),
        *linear("classifier", "head.labels"),
    ],
    prefix="bert.",
    ignored=(
        r"(.*\.)?embeddings\.position_ids",
        r"cls\.seq_relationship\.(weight|bias)",
        r"(.*\.)?pooler\.dense\.(weight|bias)",
    ),
    # TensorFlow's names.
    renamed=((r"LayerNorm\.gamma$", "LayerNorm.weight"), (r"LayerNorm\.beta$", "LayerNorm.bias")),
    published={
        "bert-base": {},
        "bert-large": _sizes(1024, 24, 16, 4096),
        "bert-tiny": _sizes(128, 2, 2, 512),
        "bert-mini": _sizes(256, 4, 4, 1024),
    },
)
_ROBERTA_PRESET = {"max_position_embeddings": 514, "type_vocab_size": 1, "layer_norm_eps": 1e-5}
_ROBERTA = replace(
    BERT,
    model_type="roberta",
    architectures=classes("Roberta", "ForMaskedLM"),
    fields={**BERT.fields, "vocab_size": ("vocab_size", 50265), **special_tokens(pad=1, bos=0, eos=2)},
    constants={**BERT.constants, "position.skip_padding": True, "init.kind": "normal"},
    derived=_derived_roberta,
    written=_written_roberta,
    rows=[
        *body("roberta.", "encoder.layer", LAYER),
        *masked_lm("lm_head.dense", "lm_head.layer_norm", "lm_head", "lm_head.decoder"),
        # The pooler of a bare RoBERTa and the dense layer of its classifier are one thing to us and two names to them.
        *linear("classifier.dense", "pooler.dense", requires="head.labels.weight"),
        *linear("classifier.out_proj", "head.labels", requires="pooler.dense.weight"),
        *linear("roberta.pooler.dense", "pooler.dense"),
        *linear("classifier", "head.labels"),
    ],
    prefix="roberta.",
    published={"roberta-base": _ROBERTA_PRESET, "roberta-large": _sizes(1024, 24, 16, 4096, **_ROBERTA_PRESET)},
)
_XLM_ROBERTA_PRESET = {**_ROBERTA_PRESET, "vocab_size": 250_002}
_XLM_ROBERTA = replace(
    _ROBERTA,
    model_type="xlm-roberta",
    architectures=classes("XLMRoberta", "ForMaskedLM"),
    fields={**_ROBERTA.fields, "vocab_size": ("vocab_size", 30522)},
    published={
        "xlm-roberta-base": _XLM_ROBERTA_PRESET,
        "xlm-roberta-large": _sizes(1024, 24, 16, 4096, **_XLM_ROBERTA_PRESET),
    },
)
_DISTILBERT = replace(
    BERT,
    model_type="distilbert",
    architectures=classes("DistilBert", "ForMaskedLM"),
    fields={
        "vocab_size": ("vocab_size", 30522),
        "dim": ("d_model", 768),
        "n_layers": ("encoder_layers", 6),
        "max_position_embeddings": ("max_length", 512),
        "n_heads": ("attention.heads", 12),
        "attention_dropout": ("attention.dropout", 0.1),
        "hidden_dim": ("feed_forward.width", 3072),
        "activation": ("feed_forward.activation", "gelu"),
        "tie_word_embeddings": ("embedding.tied", True),
        "dropout": ("dropout embedding.dropout", 0.1),
        "initializer_range": ("init.std", 0.02),
        **special_tokens(pad=0),
    },
    constants={**BERT.constants, "norm.eps": 1e-12, "init.kind": "normal"},
    derived=_derived_distilbert,
    write_head=_write_distilbert_head,
    rows=[
        *body("distilbert.", "transformer.layer", _DISTILBERT_LAYER),
        *linear("pre_classifier", "pooler.dense"),
        *linear("classifier", "head.labels"),
        *masked_lm("vocab_transform", "vocab_layer_norm", "vocab_projector", "vocab_projector"),
    ],
    prefix="distilbert.",
    published={"distilbert-base": {}},
)
FAMILIES = [BERT, _ROBERTA, _XLM_ROBERTA, _DISTILBERT]
