"""BERT (Devlin et al. 2019, 1810.04805), RoBERTa (Liu et al. 2019, 1907.11692), XLM-R (Conneau et al. 2020,
1911.02116), DistilBERT (Sanh et al. 2019), MPNet (Song et al. 2020, 2004.09297), ELECTRA (Clark et al. 2020,
2003.10555) and ALBERT (Lan et al. 2020, 1909.11942).

RoBERTa is BERT with positions counted from `padding + 1`, XLM-R is RoBERTa with 250,002 tokens of a hundred languages;
DistilBERT is BERT without segments, under other names; MPNet is RoBERTa without segments, with the relative bias of T5
beside its positions. In ELECTRA a small generator, which is a masked language model, replaces tokens of a text, and the
discriminator tells which ones: BERT with a score for each token, and in the small sizes with narrow embeddings. ALBERT
is BERT with one block for all layers and narrow embeddings (section 3.1).
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
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


def _write_dropout(head: HeadConfig, name: str, kinds: Sequence[str]) -> dict[str, Any]:
    """The fields with the labels, and those of classifiers of these kinds with the dropout, under its name there."""
    return {**write_labels(head), **({name: head.dropout} if head.kind in kinds else {})}


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
        *linears(f"{prefix}{layer}.", "encoder.blocks.{i}.", layers),
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


CLS = "cls.predictions"
CLS_HEAD = masked_lm(f"{CLS}.transform.dense", f"{CLS}.transform.LayerNorm", CLS, f"{CLS}.decoder")
POSITION_IDS = r"(.*\.)?embeddings\.position_ids"
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
        *body("bert.", "encoder.layer.{i}", LAYER),
        *linear("bert.pooler.dense", "pooler.dense"),
        *CLS_HEAD,
        *linear("classifier", "head.labels"),
    ],
    prefix="bert.",
    ignored=(POSITION_IDS, r"cls\.seq_relationship\.(weight|bias)", r"(.*\.)?pooler\.dense\.(weight|bias)"),
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
    rows=[*body("roberta.", "encoder.layer.{i}", LAYER), *_roberta_heads("roberta.")],
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
    write_head=partial(_write_dropout, name="seq_classif_dropout", kinds=("classification",)),
    rows=[
        *body("distilbert.", "transformer.layer.{i}", _DISTILBERT_LAYER),
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
_MPNET = replace(
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
        *body("mpnet.", "encoder.layer.{i}", _MPNET_LAYER),
        row("mpnet.encoder.relative_attention_bias.weight", "encoder.position.relative.table.weight"),
        *_roberta_heads("mpnet."),
    ],
    prefix="mpnet.",
    ignored=(POSITION_IDS, r"(.*\.)?pooler\.dense\.(weight|bias)"),
    renamed=(),
    published={"mpnet-base": {"max_position_embeddings": 514, "layer_norm_eps": 1e-5}},
)

_DISCRIMINATOR = "ElectraForPreTraining"


def _derived_electra(raw: Raw, values: Values, kind: HeadKind) -> Values:
    width = {"embedding.width": none_if_default(values["embedding.width"], values["d_model"])}
    if kind == "token_classification" and raw.get("architectures") == [_DISCRIMINATOR]:
        labels = {"head.labels": 1, "head.label_names": ("replaced",)}
        transform = {"head.transform": values["feed_forward.activation"], "head.transform_norm": False}
        return {**transform, **labels, "head.problem_type": "multi_label_classification", **width}
    head = derived(raw, values, kind, "gelu" if kind == "classification" else None)
    return {**head, **width, **({"head.transform": "gelu"} if kind == "language_model" else {})}


def _written_electra(config: ModelConfig) -> dict[str, Any]:
    return {"embedding_size": config.embedding.width or config.d_model}


def _write_electra_head(head: HeadConfig) -> dict[str, Any]:
    return {} if head.kind == "token_classification" and head.transform is not None else write_head(head)


_electra_sizes = sizes("hidden_size num_hidden_layers num_attention_heads intermediate_size embedding_size")
_ELECTRA = replace(
    BERT,
    model_type="electra",
    architectures={**classes("Electra", "ForMaskedLM"), _DISCRIMINATOR: "token_classification"},
    fields=fields_of(BERT.fields, {"embedding_size": ("embedding.width", 128)}, **SIZES(256, 12, 4, 1024)),
    derived=_derived_electra,
    written=_written_electra,
    write_head=_write_electra_head,
    rows=[
        *body("electra.", "encoder.layer.{i}", LAYER),
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
    ignored=(POSITION_IDS,),
    published={
        "electra-small": {},
        "electra-base": _electra_sizes(768, 12, 12, 3072, 768),
        "electra-large": _electra_sizes(1024, 24, 16, 4096, 1024),
        "electra-base-generator": _electra_sizes(256, 12, 4, 1024, 768),
        "electra-large-generator": _electra_sizes(256, 24, 4, 1024, 1024),
    },
)


def _derived_albert(raw: Raw, values: Values, kind: HeadKind) -> Values:
    if raw.get("inner_group_num", 1) != 1:
        raise UserError("config.json: ALBERT is supported where inner_group_num = 1, as in all that were published.")
    for name, ours in (("embedding_size", "embedding.width"), ("num_hidden_groups", "distinct_layers")):
        if values[ours] is None:
            raise UserError(f"config.json: ALBERT needs a number as {name}.")
    layers, groups = values["encoder_layers"], values["distinct_layers"]
    if not 1 <= groups <= layers or layers % groups:
        raise UserError(
            f"config.json: num_hidden_groups = {groups} is no number of blocks that {layers} layers can share evenly."
        )
    return derived({"classifier_dropout": raw.get("classifier_dropout_prob", 0.1)}, values, kind)


_ALBERT_LAYER = {
    "attention.query": "attention.query",
    "attention.key": "attention.key",
    "attention.value": "attention.value",
    "attention.dense": "attention.output",
    "attention.LayerNorm": "attention_norm",
    "ffn": "feed_forward.up",
    "ffn_output": "feed_forward.down",
    "full_layer_layer_norm": "feed_forward_norm",
}
_ALBERT = replace(
    BERT,
    model_type="albert",
    architectures={**classes("Albert", "ForMaskedLM"), "AlbertForPreTraining": "language_model"},
    fields=fields_of(
        BERT.fields,
        {"embedding_size": ("embedding.width", 128), "num_hidden_groups": ("distinct_layers", 1)},
        special_tokens(pad=0, bos=2, eos=3),
        **SIZES(4096, 12, 64, 16384, vocab_size=30000, hidden_act="gelu_new"),
        attention_probs_dropout_prob=0.0,
        hidden_dropout_prob=0.0,
    ),
    refused={},
    derived=_derived_albert,
    write_head=partial(_write_dropout, name="classifier_dropout_prob", kinds=CLASSIFIERS),
    rows=[
        *body("albert.", "encoder.albert_layer_groups.{i}.albert_layers.0", _ALBERT_LAYER),
        *linear("albert.encoder.embedding_hidden_mapping_in", "encoder.embedding.projection"),
        *linear("albert.pooler", "pooler.dense"),
        *masked_lm("predictions.dense", "predictions.LayerNorm", "predictions", "predictions.decoder"),
        *linear("classifier", "head.labels"),
    ],
    prefix="albert.",
    ignored=(POSITION_IDS, r"sop_classifier\.classifier\.(weight|bias)", r"(.*\.)?pooler\.(weight|bias)"),
    renamed=(),
    published={
        "albert-base-v2": SIZES(768, 12, 12, 3072),
        "albert-large-v2": SIZES(1024, 24, 16, 4096),
        "albert-xlarge-v2": SIZES(2048, 24, 16, 8192),
        "albert-xxlarge-v2": {},
    },
)
FAMILIES = [BERT, _ROBERTA, _XLM_ROBERTA, _DISTILBERT, _ELECTRA, _ALBERT, _MPNET]
