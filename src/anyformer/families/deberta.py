"""DeBERTa (He et al. 2021, 2006.03654) in the form of its third version (He et al. 2023, 2111.09543): BERT whose tokens
carry no positions, and whose attention compares contents and relative positions apart.
"""

from dataclasses import replace
from typing import Any

from anyformer.config import HeadConfig, HeadKind, ModelConfig
from anyformer.errors import UserError, cut
from anyformer.families.base import (
    CLASSIFIERS,
    SIZES,
    Raw,
    Values,
    classes,
    fields_of,
    plain_head,
    read_activation,
    write_activation,
    write_labels,
)
from anyformer.families.bert import BERT, CLS, CLS_HEAD, LAYER, POSITION_IDS, body
from anyformer.families.rows import linear, row

_FORM: dict[str, Any] = {
    "relative_attention": True,
    "position_biased_input": False,
    "pos_att_type": ["p2c", "c2p"],
    "share_att_key": True,
    "norm_rel_ebd": "layer_norm",
}
"""The form of the third version; a field that is absent means another one."""
_SCORES = "p2c|c2p", "c2p|p2c", ["c2p", "p2c"]
"""Other spellings of `pos_att_type`."""


def _derived(raw: Raw, values: Values, kind: HeadKind) -> Values:
    width, heads, buckets = values["d_model"], values["attention.heads"], raw.get("position_buckets", -1)
    same = {"embedding_size": width, "pooler_hidden_size": width, "attention_head_size": width // heads}
    given = {**{name: raw.get(name) for name in _FORM}, "norm_rel_ebd": str(raw.get("norm_rel_ebd")).strip().lower()}
    given |= {name: raw.get(name) or default for name, default in {**same, "conv_kernel_size": 0}.items()}
    if given["pos_att_type"] in _SCORES:
        given["pos_att_type"] = _FORM["pos_att_type"]
    for name, value in {**_FORM, **same, "conv_kernel_size": 0}.items():
        if given[name] != value:
            raise UserError(
                f"config.json: {name} = {cut(str(raw.get(name)))} is not supported for model type 'deberta-v2': "
                f"as in DeBERTa-v3 it has to be {value}."
            )
    if not isinstance(buckets, int) or buckets < 2:
        raise UserError("config.json: DeBERTa is supported with position_buckets, of which v3 has 256.")
    distance = raw.get("max_relative_positions", -1)
    return {
        "position.buckets": 2 * buckets,
        "position.max_distance": values["max_length"] if distance < 1 else distance,
        **_head(raw, values, kind),
    }


def _head(raw: Raw, values: Values, kind: HeadKind) -> Values:
    if kind == "language_model":
        if not raw.get("legacy", True):
            raise UserError("config.json: remove legacy = false: a head of either form is read, and written as legacy.")
        return {"head.transform": values["feed_forward.activation"], "head.bias": "learned"}
    if kind == "classification":
        if raw.get("pooler_dropout"):
            raise UserError("config.json: DeBERTa is supported where pooler_dropout = 0.")
        own = raw.get("cls_dropout")
        pooler = read_activation(raw.get("pooler_hidden_act", "gelu"))
        return {"head.pooler": pooler, "head.dropout": values["dropout"] if own is None else own}
    return {"head.dropout": values["dropout"]} if kind in CLASSIFIERS else {}


def _written(config: ModelConfig) -> dict[str, Any]:
    position = config.position
    return {**_FORM, "position_buckets": position.buckets // 2, "max_relative_positions": position.max_distance}


def _write_head(head: HeadConfig) -> dict[str, Any]:
    if head.kind != "classification":
        return write_labels(head)
    act = {} if head.pooler is None else {"pooler_hidden_act": write_activation(head.pooler)}
    return {**write_labels(head), **act, "cls_dropout": head.dropout}


_LAYER = {
    **{name.replace("attention.self.", ""): ours for name, ours in LAYER.items() if "self" not in name},
    **{f"attention.self.{name}_proj": f"attention.{name}" for name in ("query", "key", "value")},
}
_V3 = {**_FORM, "position_buckets": 256}
FAMILY = replace(
    BERT,
    model_type="deberta-v2",
    architectures=classes("DebertaV2", "ForMaskedLM"),
    fields=fields_of(
        BERT.fields, **SIZES(1536, 24, 24, 6144, vocab_size=128100), layer_norm_eps=1e-7, type_vocab_size=0
    ),
    constants={**BERT.constants, "position.kind": "disentangled", "init.kind": "normal"},
    refused={},
    derived=_derived,
    written=_written,
    read_head=plain_head,
    write_head=_write_head,
    rows=[
        row("deberta.encoder.rel_embeddings.weight", "encoder.position.table.weight"),
        *body("deberta.", "encoder.layer.{i}", _LAYER),
        *linear("deberta.encoder.LayerNorm", "encoder.position.norm"),
        *CLS_HEAD,
        *linear("pooler.dense", "pooler.dense"),
        *linear("classifier", "head.labels"),
    ],
    prefix="deberta.",
    ignored=(POSITION_IDS, r"(.*\.)?embeddings\.position_embeddings\.weight", r"mask_predictions\..*"),
    renamed=(
        *BERT.renamed,
        (r"^lm_predictions\.lm_head\.bias$", f"{CLS}.bias"),
        (r"^lm_predictions\.lm_head\.", f"{CLS}.transform."),
    ),
    published={
        "deberta-v3-base": SIZES(768, 12, 12, 3072, **_V3),
        "deberta-v3-xsmall": SIZES(384, 12, 6, 1536, **_V3),
        "deberta-v3-small": SIZES(768, 6, 12, 3072, **_V3),
        "deberta-v3-large": SIZES(1024, 24, 16, 4096, **_V3),
        "mdeberta-v3-base": SIZES(768, 12, 12, 3072, vocab_size=251_000, **_V3),
    },
)
