"""BERT (Devlin et al. 2019, 1810.04805), RoBERTa (Liu et al. 2019, 1907.11692), XLM-R (Conneau et al. 2020,
1911.02116), DistilBERT (Sanh et al. 2019), MPNet (Song et al. 2020, 2004.09297) and ELECTRA (Clark et al. 2020,
2003.10555).

RoBERTa is BERT with positions counted from `padding + 1`, XLM-R is RoBERTa with 250,002 tokens of a hundred languages;
DistilBERT is BERT without segments, under other names; MPNet is RoBERTa without segments, with the relative bias of T5
beside its positions. In ELECTRA a small generator, which is a masked language model, replaces tokens of a text, and the
discriminator tells which ones: BERT with a score for each token, and in the small sizes with narrow embeddings.
"""

from dataclasses import replace
from typing import Any

from anyformer.config import HeadConfig, HeadKind, ModelConfig
from anyformer.errors import UserError
from anyformer.families.base import (
    CLASSIFIERS,
    SIZES,
    Family,
    Raw,
    Values,
    classes,
    fields_of,
    none_if_default,
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
    return {**derived(raw, values, kind), **_counted_from(pad + 1, values, kind)}


def _counted_from(offset: int, values: Values, kind: HeadKind) -> Values:
    """Positions that begin at a row of their table, and the transform of a RoBERTa's head."""
    transform = {"head.transform": "gelu"} if kind == "language_model" else {}
    return {**transform, "position.offset": offset, "max_length": values["max_length"] - offset}


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
        # With a projection of its own, its bias alone is used.
        row(f"{decoder}.bias", "head.bias", requires="head.projection.weight"),
        row(f"{bias}.bias", "head.bias"),
        alias(f"{bias}.bias", "head.bias", is_separate=True, is_compared=False),
        alias(f"{decoder}.bias", "head.bias"),
        *tied(decoder),
    ]


def _roberta_heads(prefix: str) -> list[Row]:
    """The rows of heads, of which the pooler of a bare model and the dense layer of its classifier are one thing to us
    and two names to them."""
    return [
        *masked_lm("lm_head.dense", "lm_head.layer_norm", "lm_head", "lm_head.decoder"),
        *linear("classifier.dense", "pooler.dense", requires="head.labels.weight"),
        *linear("classifier.out_proj", "head.labels", requires="pooler.dense.weight"),
        *linear(f"{prefix}pooler.dense", "pooler.dense"),
        *linear("classifier", "head.labels"),
    ]


_CLS = "cls.predictions"
BERT = Family(
    model_type="bert",
    architectures={**classes("Bert", "ForMaskedLM"), "BertForPreTraining": "language_model"},
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
        "bert-large": SIZES(1024, 24, 16, 4096),
        "bert-tiny": SIZES(128, 2, 2, 512),
        "bert-mini": SIZES(256, 4, 4, 1024),
    },
)
_ROBERTA_PRESET = {"max_position_embeddings": 514, "type_vocab_size": 1, "layer_norm_eps": 1e-5}
_ROBERTA = replace(
    BERT,
    model_type="roberta",
    architectures=classes("Roberta", "ForMaskedLM"),
    fields=fields_of(BERT.fields, special_tokens(pad=1, bos=0, eos=2), vocab_size=50265),
    constants={**BERT.constants, "position.skip_padding": True, "init.kind": "normal"},
    derived=_derived_roberta,
    written=_written_roberta,
    rows=[*body("roberta.", "encoder.layer", LAYER), *_roberta_heads("roberta.")],
    prefix="roberta.",
    published={"roberta-base": _ROBERTA_PRESET, "roberta-large": SIZES(1024, 24, 16, 4096, **_ROBERTA_PRESET)},
)
_XLM_ROBERTA_PRESET = {**_ROBERTA_PRESET, "vocab_size": 250_002}
_XLM_ROBERTA = replace(
    _ROBERTA,
    model_type="xlm-roberta",
    architectures=classes("XLMRoberta", "ForMaskedLM"),
    fields=fields_of(_ROBERTA.fields, vocab_size=30522),
    published={
        "xlm-roberta-base": _XLM_ROBERTA_PRESET,
        "xlm-roberta-large": SIZES(1024, 24, 16, 4096, **_XLM_ROBERTA_PRESET),
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


_PADDING, _BUCKETS = 1, 32
"""Numbers that are in the code of the reference, whatever config.json says of the token and of the buckets."""


def _derived_mpnet(raw: Raw, values: Values, kind: HeadKind) -> Values:
    if values["position.buckets"] != _BUCKETS:
        raise UserError(f"config.json: MPNet is supported where relative_attention_num_buckets = {_BUCKETS}.")
    positions = {**_counted_from(_PADDING + 1, values, kind), "embedding.padding": _PADDING}
    return {**derived({}, values, kind), **positions}


_MPNET_LAYER = {
    "attention.attn.q": "attention.query",
    "attention.attn.k": "attention.key",
    "attention.attn.v": "attention.value",
    "attention.attn.o": "attention.output",
    "attention.LayerNorm": "attention_norm",
    **{name: ours for name, ours in LAYER.items() if not name.startswith("attention.")},
}
MPNET = replace(
    BERT,
    model_type="mpnet",
    architectures=classes("MPNet", "ForMaskedLM"),
    fields=fields_of(
        BERT.fields,
        {"relative_attention_num_buckets": ("position.buckets", _BUCKETS)},
        special_tokens(pad=1, bos=0, eos=2),
        without=("type_vocab_size",),
        vocab_size=30527,
    ),
    constants={**_ROBERTA.constants, "position.relative_bias": True},
    refused={},
    derived=_derived_mpnet,
    written=_written_roberta,
    write_head=write_labels,
    rows=[
        *body("mpnet.", "encoder.layer", _MPNET_LAYER),
        row("mpnet.encoder.relative_attention_bias.weight", "encoder.position.relative.table.weight"),
        *_roberta_heads("mpnet."),
    ],
    prefix="mpnet.",
    ignored=(r"(.*\.)?embeddings\.position_ids", r"(.*\.)?pooler\.dense\.(weight|bias)"),
    renamed=(),
    published={"mpnet-base": {"max_position_embeddings": 514, "layer_norm_eps": 1e-5}},
)

_DISCRIMINATOR = "ElectraForPreTraining"


def _derived_electra(raw: Raw, values: Values, kind: HeadKind) -> Values:
    width = {"embedding.width": none_if_default(values["embedding.width"], values["d_model"])}
    if kind == "token_classification" and raw.get("architectures") == [_DISCRIMINATOR]:
        labels = {
            "head.labels": 1,
            "head.label_names": ("replaced",),
            "head.problem_type": "multi_label_classification",
        }
        transform = {"head.transform": values["feed_forward.activation"], "head.transform_norm": False}
        return {**transform, **labels, **width}
    head = derived(raw, values, kind, "gelu" if kind == "classification" else None)
    return {**head, **width, **({"head.transform": "gelu"} if kind == "language_model" else {})}


def _written_electra(config: ModelConfig) -> dict[str, Any]:
    return {"embedding_size": config.embedding.width or config.d_model}


def _write_electra_head(head: HeadConfig) -> dict[str, Any]:
    return {} if head.kind == "token_classification" and head.transform is not None else write_head(head)


_electra_sizes = sizes("hidden_size num_hidden_layers num_attention_heads intermediate_size embedding_size")
ELECTRA = replace(
    BERT,
    model_type="electra",
    architectures={**classes("Electra", "ForMaskedLM"), _DISCRIMINATOR: "token_classification"},
    fields=fields_of(BERT.fields, {"embedding_size": ("embedding.width", 128)}, **SIZES(256, 12, 4, 1024)),
    derived=_derived_electra,
    written=_written_electra,
    write_head=_write_electra_head,
    rows=[
        *body("electra.", "encoder.layer", LAYER),
        *linear("electra.embeddings_project", "encoder.embedding.projection"),
        # The transforms of both heads are one thing to us, and the discriminator's has no norm.
        *linear("generator_predictions.dense", "head.transform.dense", requires="head.transform.norm.weight"),
        *linear("generator_predictions.LayerNorm", "head.transform.norm"),
        *tied("generator_lm_head"),
        row("generator_lm_head.bias", "head.bias"),
        *linear("discriminator_predictions.dense", "head.transform.dense"),
        *linear("discriminator_predictions.dense_prediction", "head.labels", requires="head.transform.dense.weight"),
        *linear("classifier.dense", "pooler.dense"),
        *linear("classifier.out_proj", "head.labels", requires="pooler.dense.weight"),
        *linear("classifier", "head.labels"),
    ],
    prefix="electra.",
    ignored=(r"(.*\.)?embeddings\.position_ids",),
    published={
        "electra-small": {},
        "electra-base": _electra_sizes(768, 12, 12, 3072, 768),
        "electra-large": _electra_sizes(1024, 24, 16, 4096, 1024),
        "electra-base-generator": _electra_sizes(256, 12, 4, 1024, 768),
        "electra-large-generator": _electra_sizes(256, 24, 4, 1024, 1024),
    },
)
FAMILIES = [BERT, _ROBERTA, _XLM_ROBERTA, _DISTILBERT]
