"""ALBERT (Lan et al. 2020, 1909.11942): BERT with one block for all layers and narrow embeddings (section 3.1)."""

from dataclasses import replace
from typing import Any

from anyformer.config import HeadConfig, HeadKind
from anyformer.errors import UserError
from anyformer.families.base import CLASSIFIERS, SIZES, Raw, Values, classes, fields_of, special_tokens, write_labels
from anyformer.families.bert import BERT, body, derived, masked_lm
from anyformer.families.rows import linear


def _derived(raw: Raw, values: Values, kind: HeadKind) -> Values:
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


def _write_head(head: HeadConfig) -> dict[str, Any]:
    dropout = {"classifier_dropout_prob": head.dropout} if head.kind in CLASSIFIERS else {}
    return {**write_labels(head), **dropout}


_LAYER = {
    "attention.query": "attention.query",
    "attention.key": "attention.key",
    "attention.value": "attention.value",
    "attention.dense": "attention.output",
    "attention.LayerNorm": "attention_norm",
    "ffn": "feed_forward.up",
    "ffn_output": "feed_forward.down",
    "full_layer_layer_norm": "feed_forward_norm",
}
FAMILY = replace(
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
    derived=_derived,
    write_head=_write_head,
    rows=[
        *body(
            "albert.", "encoder.albert_layer_groups", {f"albert_layers.0.{name}": our for name, our in _LAYER.items()}
        ),
        *linear("albert.encoder.embedding_hidden_mapping_in", "encoder.embedding.projection"),
        *linear("albert.pooler", "pooler.dense"),
        *masked_lm("predictions.dense", "predictions.LayerNorm", "predictions", "predictions.decoder"),
        *linear("classifier", "head.labels"),
    ],
    prefix="albert.",
    ignored=(
        r"(.*\.)?embeddings\.position_ids",
        r"sop_classifier\.classifier\.(weight|bias)",
        r"(.*\.)?pooler\.(weight|bias)",
    ),
    renamed=(),
    published={
        "albert-base-v2": SIZES(768, 12, 12, 3072),
        "albert-large-v2": SIZES(1024, 24, 16, 4096),
        "albert-xlarge-v2": SIZES(2048, 24, 16, 8192),
        "albert-xxlarge-v2": {},
    },
)
