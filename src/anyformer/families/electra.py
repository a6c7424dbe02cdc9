"""ELECTRA (Clark et al. 2020, 2003.10555).

A small generator, which is a masked language model, replaces tokens of a text, and the discriminator tells which ones:
BERT with a score for each token, and in the small sizes with narrow embeddings.
"""

from dataclasses import replace
from typing import Any

from anyformer.config import HeadConfig, HeadKind, ModelConfig
from anyformer.families.base import Raw, Values, classes, none_if_default, sizes
from anyformer.families.bert import BERT, LAYER, body, derived, write_head
from anyformer.families.rows import linear, row, tied

_DISCRIMINATOR = "ElectraForPreTraining"


def _derived(raw: Raw, values: Values, kind: HeadKind) -> Values:
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


def _written(config: ModelConfig) -> dict[str, Any]:
    return {"embedding_size": config.embedding.width or config.d_model}


def _write_head(head: HeadConfig) -> dict[str, Any]:
    return {} if head.kind == "token_classification" and head.transform is not None else write_head(head)


_sizes = sizes("hidden_size num_hidden_layers num_attention_heads intermediate_size embedding_size")
FAMILY = replace(
    BERT,
    model_type="electra",
    architectures={**classes("Electra", "ForMaskedLM"), _DISCRIMINATOR: "token_classification"},
    fields={
        **BERT.fields,
        "embedding_size": ("embedding.width", 128),
        "hidden_size": ("d_model", 256),
        "num_attention_heads": ("attention.heads", 4),
        "intermediate_size": ("feed_forward.width", 1024),
    },
    derived=_derived,
    written=_written,
    write_head=_write_head,
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
        "electra-base": _sizes(768, 12, 12, 3072, 768),
        "electra-large": _sizes(1024, 24, 16, 4096, 1024),
        "electra-base-generator": _sizes(256, 12, 4, 1024, 768),
        "electra-large-generator": _sizes(256, 24, 4, 1024, 1024),
    },
)
