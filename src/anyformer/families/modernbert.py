"""ModernBERT (Warner et al. 2024, 2412.13663), section 2: an encoder of pre-norm blocks with rotary positions, GEGLU
and no biases, in which two layers of three have a window.
"""

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
    plain_head,
    read_activation,
    special_tokens,
    write_activation,
    write_labels,
)
from anyformer.families.llama import BIAS
from anyformer.families.rotary import (
    read_layer_types,
    read_layers,
    read_period,
    window_of,
    write_layer_types,
    write_ropes,
)
from anyformer.families.rows import SPLIT, linear, linears, row, tied

_WINDOW, _PERIOD = 128, 3
_POOLINGS = {"cls": "first", "mean": "mean"}


def _derived(raw: Raw, values: Values, kind: HeadKind) -> Values:
    if raw.get("attention_dropout"):
        raise UserError("config.json: ModernBERT is supported where attention_dropout = 0.")
    period = read_period(raw, "global_attn_every_n_layers", _PERIOD)
    types = read_layer_types(raw, values["encoder_layers"], lambda layer: layer % period != 0)
    window = raw.get("local_attention", _WINDOW) // 2 + 1  # both sides are counted there, and one here
    thetas = raw.get("global_rope_theta", 160_000.0), raw.get("local_rope_theta", 10_000.0)
    return {
        **read_layers(raw, values, kind, types, window, thetas, scales_both=True),
        **_head(raw, kind),
        "norm.kind": "layer" if raw.get("norm_bias") else "layer_no_bias",
    }


def _head(raw: Raw, kind: HeadKind) -> Values:
    """The layers of a head: the same before the logits over the vocabulary and over labels."""
    pooling = raw.get("classifier_pooling", "cls")
    if kind == "classification" and pooling not in _POOLINGS:
        raise UserError("config.json: ModernBERT is supported where classifier_pooling is cls or mean.")
    # Other heads keep it for the classifier that the model may be given.
    pooled = {"head.pooling": _POOLINGS.get(pooling, "first")}
    if kind == "none":
        return pooled
    transform = {
        "head.transform": read_activation(raw.get("classifier_activation", "gelu")),
        "head.transform_bias": bool(raw.get("classifier_bias")),
    }
    if kind == "language_model":
        return {**transform, **pooled, "head.bias": "learned" if raw.get("decoder_bias", True) else "none"}
    return {**transform, **pooled, "head.dropout": raw.get("classifier_dropout", 0.0)}


def _write_head(head: HeadConfig) -> dict[str, Any]:
    poolings = {ours: theirs for theirs, ours in _POOLINGS.items()}
    written = {**write_labels(head), "classifier_pooling": poolings.get(head.pooling)}
    if head.transform is not None:
        written |= {"classifier_activation": write_activation(head.transform), "classifier_bias": head.transform_bias}
    if head.kind == "language_model":
        written["decoder_bias"] = head.bias == "learned"
    if head.kind in CLASSIFIERS:
        written["classifier_dropout"] = head.dropout
    return written


def _written(config: ModelConfig) -> dict[str, Any]:
    window = window_of(config)
    return {
        **write_ropes(config),
        "layer_types": write_layer_types(config),
        "local_attention": _WINDOW if window is None else 2 * (window - 1),
        "norm_bias": config.norm.kind == "layer",
    }


_LAYER = {
    "attn_norm": "attention_norm",
    "attn.Wo": "attention.output",
    "mlp_norm": "feed_forward_norm",
    "mlp.Wo": "feed_forward.down",
}
_QKV = [f"encoder.blocks.{{i}}.attention.{part}" for part in ("query", "key", "value")]
_GATE_UP = [f"encoder.blocks.{{i}}.feed_forward.{part}" for part in ("gate", "up")]
FAMILY = Family(
    model_type="modernbert",
    architectures=classes("ModernBert", "ForMaskedLM"),
    fields={
        **BIAS,
        "vocab_size": ("vocab_size", 50368),
        "hidden_size": ("d_model", 768),
        "num_hidden_layers": ("encoder_layers", 22),
        "max_position_embeddings": ("max_length", 8192),
        "num_attention_heads": ("attention.heads", 12),
        "intermediate_size": ("feed_forward.width", 1152),
        "hidden_activation": ("feed_forward.activation", "gelu"),
        "mlp_bias": ("feed_forward.bias", False),
        "mlp_dropout": ("feed_forward.dropout", 0.0),
        "norm_eps": ("norm.eps", 1e-5),
        "tie_word_embeddings": ("embedding.tied", True),
        "embedding_dropout": ("embedding.dropout", 0.0),
        "initializer_range": ("init.std", 0.02),
        **special_tokens(bos=50281, eos=50282, pad=50283),
    },
    constants={
        "position.kind": "rotary",
        "feed_forward.gated": True,
        "norm.first": False,
        "embedding.norm": True,
        "init.kind": "truncated_normal",
        "init.scale_residual": True,
    },
    derived=_derived,
    written=_written,
    read_head=plain_head,
    write_head=_write_head,
    rows=[
        row("model.embeddings.tok_embeddings.weight", "token_embedding.table.weight"),
        *linear("model.embeddings.norm", "encoder.embedding.norm"),
        *linears("model.layers.{i}.", "encoder.blocks.{i}.", _LAYER),
        *linear("model.layers.{i}.attn.Wqkv", _QKV, SPLIT),
        *linear("model.layers.{i}.mlp.Wi", _GATE_UP, SPLIT),
        *linear("model.final_norm", "encoder.final_norm"),
        *linear("head.dense", "head.transform.dense"),
        *linear("head.norm", "head.transform.norm"),
        row("decoder.bias", "head.bias"),
        *tied("decoder"),
        *linear("classifier", "head.labels"),
    ],
    prefix="model.",
    published={"modernbert-base": {}, "modernbert-large": SIZES(1024, 28, 16, 2624)},
)
