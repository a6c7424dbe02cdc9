"""Values of the template of an architecture, from a config."""

from collections.abc import Mapping, Sequence
from typing import Any

from anyformer.config import ModelConfig
from anyformer.learn.eject.constants import constants
from anyformer.learn.eject.parts import ACTIVATIONS, attention_part, call, feed_forward_part, stack_part
from anyformer.learn.eject.stacks import Group, Stack, alike, layers_name, rotations, sharpness, stacks_of

NORMS = {"layer": "LayerNorm", "rms": "RMSNorm"}
POSITIONS = ("none", "sinusoidal", "learned", "rotary", "relative")
INITIALIZERS = {
    "normal": "N(0, std) for every matrix and table, zero for every bias.",
    "truncated_normal": "N(0, std), redrawn beyond two standard deviations, and zero for every bias (BERT).",
    "xavier": "Glorot-uniform matrices, token vectors from N(0, 1 / D), zero for every bias (Vaswani et al. 2017).",
    "t5": "N(0, 1 / inputs) for matrices; queries have the 1 / sqrt(K) that the scores leave out as well (T5).",
}


def architecture(config: ModelConfig) -> dict[str, Any]:
    """The values of architecture.py.jinja."""
    stacks = stacks_of(config)
    # Two stacks of the same parts share their classes, and a class takes what one of its uses needs.
    attentions = {group: attention_part(config, group) for group in alike(stacks, lambda stack: stack.attention)}
    feed_forwards = {group: feed_forward_part(group) for group in alike(stacks, lambda stack: stack.feed_forward)}
    layers = " + ".join(layers_name(stack, config.is_encoder_decoder) for stack in stacks)
    made = [stack_part(config, stack, _of(stack, attentions), _of(stack, feed_forwards)) for stack in stacks]
    return {
        "constants": constants(config, stacks, list(attentions), list(feed_forwards)),
        **_norms(config, stacks),
        **_positions(config),
        "rotations": rotations(config, list(attentions)),
        **_embeddings(config),
        "attentions": list(attentions.values()),
        "feed_forwards": list(feed_forwards.values()),
        "blocks": [stack["blocks"] for stack in made],
        "stacks": made,
        "dropout": config.dropout,
        **_texts(config),
        **_head(config),
        "model_docstring": _model_docstring(config),
        "init": _initialization(config),
        "depth": f"({layers})" if config.is_encoder_decoder else layers,
    }


def _of(stack: Stack, parts: Mapping[Group, dict[str, Any]]) -> dict[str, Any]:
    return next(part for group, part in parts.items() if stack in group.stacks)


def _norms(config: ModelConfig, stacks: Sequence[Stack]) -> dict[str, Any]:
    norm = config.norm
    return {
        "norm": NORMS[norm.kind],
        "qk_norm": any(stack.attention.qk_norm for stack in stacks),
        "pre_norm": norm.placement == "pre",
        "final_norm": norm.has_final,
    }


def _positions(config: ModelConfig) -> dict[str, Any]:
    position = config.position
    rows = "MAX_LENGTH + POSITION_OFFSET" if position.offset else "MAX_LENGTH"
    table = f"{rows}, D_MODEL" + (", padding_idx=POSITION_OFFSET - 1" if position.skip_padding else "")
    return {
        "position": position.kind,
        "layout": position.layout,
        "scaling": position.scaling,
        "sharpness": sharpness(config),
        "position_table": call("nn.ModuleDict", [f'{{"table": nn.Embedding({table})}}'], indent=8, before=16),
        "offset": position.offset,
        "skips_padding": position.skip_padding,
    }


def _embeddings(config: ModelConfig) -> dict[str, Any]:
    embedding = config.embedding
    modules = ['"ngrams": NgramEmbedding()'] if embedding.ngrams > 1 else []
    modules += ['"segments": nn.Embedding(SEGMENTS, D_MODEL)'] if embedding.segments else []
    modules += [f'"norm": {NORMS[config.norm.kind]}(D_MODEL)'] if embedding.norm else []
    return {
        "ngrams": embedding.ngrams,
        "embedded": modules and call("nn.ModuleDict", [f"{{{', '.join(modules)}}}"], indent=8, before=17),
        "segments": embedding.segments,
        "embedding_norm": embedding.norm,
        "embedding_dropout": embedding.dropout,
        "embedding_scaled": embedding.scaled,
        "padding": embedding.padding is not None,
        "source_table": config.source_vocab_size is not None,
    }


def _texts(config: ModelConfig) -> dict[str, Any]:
    """Values on the inputs of the model."""
    cross = config.is_encoder_decoder
    return {
        "cross": cross,
        "two_texts": cross and config.head.kind != "classification",
        "reads_tokens": config.position.skip_padding or config.embedding.ngrams > 1,
    }


def _head(config: ModelConfig) -> dict[str, Any]:
    head, tied = config.head, config.embedding.tied
    needs_class = head.transform is not None or head.bias != "none" or head.scaled
    parts = ["a transform first"] if head.transform else []
    parts += ["a bias for each token"] if head.bias != "none" else []
    parts += ["divided by sqrt(D)"] if head.scaled else []
    table = "the token table" if tied else "a matrix"
    return {
        "head": head.kind,
        "tied": tied,
        "head_class": head.kind == "language_model" and needs_class,
        "head_docstring": f"Logits over the vocabulary by {table}: {', '.join(parts)}.",
        "head_bias": head.bias,
        "head_scaled": head.scaled,
        "transform": ACTIVATIONS.get(head.transform or ""),
        "pooler": ACTIVATIONS.get(head.pooler or ""),
        "pooling": head.pooling,
        "label_bias": head.label_bias,
        "head_dropout": head.dropout,
    }


def _model_docstring(config: ModelConfig) -> str:
    match config.head.kind:
        case "language_model":
            last = "logits over the vocabulary"
        case "none":
            last = "hidden states"
        case _:
            last = "logits over labels"
    if config.is_encoder_decoder:
        return f"An encoder reads the source [B, S], a decoder writes tokens [B, T]: {last}."
    return f"{'A decoder' if config.decoder_layers else 'An encoder'} over tokens [B, T]: {last}."


def _initialization(config: ModelConfig) -> dict[str, Any]:
    init, wide = config.init, ["token_embedding.table.weight"]
    wide += ["source_embedding.table.weight"] if config.source_vocab_size is not None else []
    wide += ["head.projection.weight"] if config.head.kind == "language_model" and not config.embedding.tied else []
    names = ", ".join(f'"{name}"' for name in wide) + ("," if len(wide) == 1 else "")
    return {
        "kind": init.kind,
        "scale_residual": init.scale_residual and init.kind == "normal",
        "docstring": INITIALIZERS[init.kind],
        "drawn_wide": names,
    }
