"""MPNet (Song et al. 2020, 2004.09297): RoBERTa without segments, with the relative bias of T5 beside its positions."""

from dataclasses import replace

from anyformer.config import HeadKind, ModelConfig
from anyformer.errors import UserError
from anyformer.families.base import Raw, Values, classes, special_tokens, write_labels
from anyformer.families.bert import BERT, body, derived, masked_lm
from anyformer.families.rows import linear, row

_PADDING, _BUCKETS = 1, 32
"""Numbers that are in the code of the reference, whatever config.json says of the token and of the buckets."""


def _derived(raw: Raw, values: Values, kind: HeadKind) -> Values:
    if values["position.buckets"] != _BUCKETS:
        raise UserError(f"config.json: MPNet is supported where relative_attention_num_buckets = {_BUCKETS}.")
    offset = {"position.offset": _PADDING + 1, "max_length": values["max_length"] - (_PADDING + 1)}
    transform = {"head.transform": "gelu"} if kind == "language_model" else {}
    return {**derived({}, values, kind), **transform, **offset, "embedding.padding": _PADDING}


def _written(config: ModelConfig) -> dict[str, int]:
    return {"max_position_embeddings": config.max_length + config.position.offset}


_LAYER = {
    "attention.attn.q": "attention.query",
    "attention.attn.k": "attention.key",
    "attention.attn.v": "attention.value",
    "attention.attn.o": "attention.output",
    "attention.LayerNorm": "attention_norm",
    "intermediate.dense": "feed_forward.up",
    "output.dense": "feed_forward.down",
    "output.LayerNorm": "feed_forward_norm",
}
FAMILY = replace(
    BERT,
    model_type="mpnet",
    architectures=classes("MPNet", "ForMaskedLM"),
    fields={
        **{name: field for name, field in BERT.fields.items() if name != "type_vocab_size"},
        "vocab_size": ("vocab_size", 30527),
        "relative_attention_num_buckets": ("position.buckets", _BUCKETS),
        **special_tokens(pad=1, bos=0, eos=2),
    },
    constants={
        **BERT.constants,
        "position.skip_padding": True,
        "position.relative_bias": True,
        "init.kind": "normal",
    },
    refused={},
    derived=_derived,
    written=_written,
    write_head=write_labels,
    rows=[
        *body("mpnet.", "encoder.layer", _LAYER),
        row("mpnet.encoder.relative_attention_bias.weight", "encoder.position.relative.table.weight"),
        *masked_lm("lm_head.dense", "lm_head.layer_norm", "lm_head", "lm_head.decoder"),
        *linear("classifier.dense", "pooler.dense", requires="head.labels.weight"),
        *linear("classifier.out_proj", "head.labels", requires="pooler.dense.weight"),
        *linear("mpnet.pooler.dense", "pooler.dense"),
        *linear("classifier", "head.labels"),
    ],
    prefix="mpnet.",
    ignored=(r"(.*\.)?embeddings\.position_ids", r"(.*\.)?pooler\.dense\.(weight|bias)"),
    renamed=(),
    published={"mpnet-base": {"max_position_embeddings": 514, "layer_norm_eps": 1e-5}},
)
