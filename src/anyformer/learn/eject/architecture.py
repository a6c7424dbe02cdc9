"""What the template of an architecture says of a config."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from anyformer.config import AttentionConfig, FeedForwardConfig, ModelConfig

WIDTH = 120
"""Of a line."""
ACTIVATIONS = {
    "relu": "F.relu(%s)",
    "relu_squared": "F.relu(%s).square()",
    "gelu": "F.gelu(%s)",
    "gelu_tanh": 'F.gelu(%s, approximate="tanh")',
    "silu": "F.silu(%s)",
    "tanh": "torch.tanh(%s)",
}
NORMS = {"layer": "LayerNorm", "rms": "RMSNorm"}
POSITIONS = ("none", "sinusoidal", "learned", "rotary", "relative")
INITIALIZERS = {
    "normal": "N(0, std) for every matrix and table, zero for every bias.",
    "truncated_normal": "N(0, std), redrawn beyond two standard deviations, and zero for every bias (BERT).",
    "xavier": "Glorot-uniform matrices, token vectors from N(0, 1 / D), zero for every bias (Vaswani et al. 2017).",
    "t5": "N(0, 1 / inputs) for matrices; queries have the 1 / sqrt(K) that the scores leave out as well (T5).",
}


@dataclass(frozen=True)
class _Stack:
    """One stack, and what its blocks are made of."""

    name: str
    attention: AttentionConfig
    feed_forward: FeedForwardConfig
    layers: int
    is_decoder: bool

    @property
    def window(self) -> int | None:
        return self.attention.window if self.attention.window_from < self.layers else None

    @property
    def window_from(self) -> int:
        """The first layer that has the window, where others have none; 0: all or none."""
        return 0 if self.window is None else self.attention.window_from


def _stacks(config: ModelConfig) -> list[_Stack]:
    first = (config.attention, config.feed_forward)
    second = (config.decoder_attention or first[0], config.decoder_feed_forward or first[1])
    found: list[_Stack] = []
    if config.encoder_layers:
        found.append(_Stack("Encoder", *first, config.encoder_layers, is_decoder=False))
    if config.decoder_layers:
        parts = second if config.encoder_layers else first
        found.append(_Stack("Decoder", *parts, config.decoder_layers, is_decoder=True))
    return found


def architecture(config: ModelConfig) -> dict[str, Any]:
    """The values of architecture.py.jinja."""
    stacks, cross = _stacks(config), config.is_encoder_decoder
    position, norm, embedding, head = config.position, config.norm, config.embedding, config.head
    has_mask = {stack.name: position.kind == "relative" or stack.window is not None for stack in stacks}
    # Two stacks of the same parts share their classes, and a class takes what one of its uses needs.
    groups = [stacks] if len({stack.attention for stack in stacks}) == 1 else [[stack] for stack in stacks]
    prefixes = {stack.name: "" if len(groups) == 1 else stack.name.upper() + "_" for stack in stacks}
    attentions = [_attention(config, group, prefixes[group[0].name], has_mask) for group in groups]
    attention_of = {stack.name: made for group, made in zip(groups, attentions, strict=True) for stack in group}
    wide = [stacks] if len({stack.feed_forward for stack in stacks}) == 1 else [[stack] for stack in stacks]
    widths = {stack.name: "WIDTH" if len(wide) == 1 else f"{stack.name.upper()}_WIDTH" for stack in stacks}
    feed_forwards = [_feed_forward(group[0], "" if len(wide) == 1 else group[0].name, widths) for group in wide]
    feed_forward_of = {stack.name: made for group, made in zip(wide, feed_forwards, strict=True) for stack in group}
    constants = [("VOCAB_SIZE", config.vocab_size)]
    if config.source_vocab_size is not None:
        constants.append(("SOURCE_VOCAB_SIZE", config.source_vocab_size))
    constants.append(("D_MODEL", config.d_model))
    constants.append(("MAX_LENGTH", config.max_length))
    for stack in stacks:
        constants.append((_layers(stack, cross), stack.layers))
    for group in groups:
        constants += _sizes(config, group[0].attention, prefixes[group[0].name])
    constants += [(widths[group[0].name], group[0].feed_forward.width) for group in wide]
    made_stacks = [
        _stack(config, stack, attention_of[stack.name], feed_forward_of[stack.name], has_mask[stack.name])
        for stack in stacks
    ]
    embedded: list[str] = []
    if embedding.ngrams > 1:
        embedded.append('"ngrams": NgramEmbedding()')
    if embedding.segments:
        embedded.append(f'"segments": nn.Embedding({embedding.segments}, D_MODEL)')
    if embedding.norm:
        embedded.append(f'"norm": {NORMS[norm.kind]}(D_MODEL)')
    return {
        "constants": constants,
        "norm": NORMS[norm.kind],
        "eps": norm.eps,
        "qk_norm": any(stack.attention.qk_norm for stack in stacks),
        "position": position.kind,
        "layout": position.layout,
        "theta": position.theta,
        "scaling": position.scaling,
        "sharpness": _sharpness(config),
        "rotations": _rotations(config, groups, prefixes),
        "buckets": position.buckets,
        "max_distance": position.max_distance,
        "ngrams": embedding.ngrams,
        "ngram_rows": embedding.ngram_rows,
        "attentions": attentions,
        "feed_forwards": feed_forwards,
        "blocks": [stack["blocks"] for stack in made_stacks],
        "pre_norm": norm.placement == "pre",
        "dropout": config.dropout,
        "stacks": made_stacks,
        "rows": f"MAX_LENGTH + {position.offset}" if position.offset else "MAX_LENGTH",
        "position_padding": position.offset - 1 if position.skip_padding else None,
        "offset": position.offset,
        "skipped": embedding.padding if position.skip_padding else None,
        "embedded": embedded and _call("nn.ModuleDict", [f"{{{', '.join(embedded)}}}"], indent=8, before=17),
        "segments": embedding.segments,
        "embedding_norm": embedding.norm,
        "embedding_dropout": embedding.dropout,
        "embedding_scaled": embedding.scaled,
        "padding": embedding.padding,
        "source_table": config.source_vocab_size is not None,
        "final_norm": norm.has_final,
        "cross": cross,
        "two_texts": cross and head.kind != "classification",
        "reads_tokens": position.skip_padding or embedding.ngrams > 1,
        "decoder_start": decoder_start(config),
        **_head(config),
        "model_docstring": _model_docstring(config),
        "init": _initialization(config),
        "depth": config.encoder_layers + config.decoder_layers,
    }


def _layers(stack: _Stack, cross: bool) -> str:
    return f"{stack.name.upper()}_LAYERS" if cross else "LAYERS"


def _sizes(config: ModelConfig, attention: AttentionConfig, prefix: str) -> list[tuple[str, int]]:
    kv_heads = attention.kv_heads or attention.heads
    sizes = [(f"{prefix}HEADS", attention.heads)]
    sizes += [(f"{prefix}KV_HEADS", kv_heads)] if kv_heads != attention.heads else []
    return [*sizes, (f"{prefix}HEAD_DIM", attention.head_dim or config.d_model // attention.heads)]


def _attention(
    config: ModelConfig, group: Sequence[_Stack], prefix: str, has_mask: Mapping[str, bool]
) -> dict[str, Any]:
    attention, cross = group[0].attention, config.is_encoder_decoder and group[-1].is_decoder
    mask = any(has_mask[stack.name] for stack in group)
    rotation = config.position.kind == "rotary"
    is_grouped = (attention.kv_heads or attention.heads) != attention.heads
    # Masks know what is causal; without one, a decoder alone always is, and with an encoder its self-attention.
    needs_causal = group[-1].is_decoder and not has_mask[group[-1].name]
    causal_argument = needs_causal and (cross or len(group) > 1)
    none = "=None" if cross else ""
    arguments = ["self", "x"]
    arguments += ["source=None"] if cross else []
    arguments += [f"mask{none}"] if mask else []
    arguments += ["causal=False"] if causal_argument else []
    arguments += [f"rotation{none}"] if rotation else []
    scale = None if attention.scale is None else repr(float(attention.scale))
    operands = ["query", "key", "value"]
    operands += ["attn_mask=mask"] if mask else []
    operands += [f"dropout_p={attention.dropout} if self.training else 0.0"] if attention.dropout else []
    operands += ["is_causal=causal"] if causal_argument else ["is_causal=True"] if needs_causal else []
    if attention.scale_by_layer:
        operands.append("scale=self.scale")
    elif scale is not None:
        operands.append(f"scale={scale}")
    operands += ["enable_gqa=True"] if is_grouped else []
    formula = "softmax(q k^T / sqrt(K)) v" if scale is None else f"softmax({scale} q k^T) v"
    heads = "several heads" if attention.heads > 1 else "one head"
    docstring = f"{formula} in {heads} (Vaswani et al. 2017, equation 1)."
    if is_grouped:
        docstring = f"{formula} in heads that share keys and values (Ainslie et al. 2023)."
    return {
        "name": ("" if prefix == "" else group[0].name) + "Attention",
        "docstring": docstring,
        "heads": f"{prefix}HEADS",
        "kv_heads": f"{prefix}KV_HEADS" if is_grouped else f"{prefix}HEADS",
        "head_dim": f"{prefix}HEAD_DIM",
        "bias": attention.bias,
        "output_bias": attention.output_bias,
        "qk_norm": attention.qk_norm,
        "scale_by_layer": attention.scale_by_layer,
        "scale": scale or f"{prefix}HEAD_DIM**-0.5",
        "arguments": arguments,
        "cross": cross,
        "mask": mask,
        "rotation": rotation,
        "causal_argument": causal_argument,
        "states": "states" if cross else "x",
        "product": _call("F.scaled_dot_product_attention", operands, indent=8, before=len("out = ")),
    }


def _call(function: str, operands: Sequence[str], *, indent: int, before: int) -> str:
    """A call, on one line if there is room, as formatters break it."""
    line = f"{function}({', '.join(operands)})"
    if indent + before + len(line) <= WIDTH:
        return line
    inner, outer = " " * (indent + 4), " " * indent
    if len(inner) + len(", ".join(operands)) <= WIDTH:
        return f"{function}(\n{inner}{', '.join(operands)}\n{outer})"
    return f"{function}(\n" + "".join(f"{inner}{operand},\n" for operand in operands) + f"{outer})"


def _feed_forward(stack: _Stack, name: str, widths: Mapping[str, str]) -> dict[str, Any]:
    part = stack.feed_forward
    gated = {"silu": "SwiGLU", "gelu": "GEGLU", "gelu_tanh": "GEGLU", "relu": "ReGLU"}.get(part.activation, "gated")
    docstring = "down(act(up(x))), the same for every token (Vaswani et al. 2017, equation 2)."
    if part.gated:
        docstring = f"down(act(gate(x)) * up(x)): {gated} (Shazeer 2020, equation 6)."
    return {
        "name": f"{name}FeedForward",
        "docstring": docstring,
        "width": widths[stack.name],
        "bias": part.bias,
        "gated": part.gated,
        "activation": ACTIVATIONS[part.activation],
        "dropout": part.dropout,
    }


def _stack(
    config: ModelConfig, stack: _Stack, attention: Mapping[str, Any], feed_forward: Mapping[str, Any], mask: bool
) -> dict[str, Any]:
    cross = config.is_encoder_decoder and stack.is_decoder
    named = attention["cross"]
    rotation = config.position.kind == "rotary"
    causal = stack.is_decoder and not mask and attention["causal_argument"]
    keywords = ["mask=mask" if named else "mask"] if mask else ["None"] if attention["mask"] and not named else []
    keywords += ["causal=True"] if causal else []
    keywords += ["rotation=rotation" if named else "rotation"] if rotation else []
    arguments = ["self", "x", *(["source"] if cross else []), *(["mask"] if mask else [])]
    arguments += ["rotation"] if rotation else []
    passed_mask = f"mask if layer < {stack.window_from} else window" if stack.window_from else "mask"
    passed = [
        "x",
        *(["source"] if cross else []),
        *([passed_mask] if mask else []),
        *(["rotation"] if rotation else []),
    ]
    both = config.is_encoder_decoder
    name = f"{stack.name}Block" if both else "Block"
    order = "norms after" if config.norm.placement == "post" else "norms before"
    parts = "attention, attention to the source, feed-forward" if cross else "attention, feed-forward"
    reads = config.position.skip_padding or config.embedding.ngrams > 1
    heads = "" if attention["name"] == "Attention" else f"{stack.name.upper()}_"
    return {
        "name": stack.name,
        "attribute": stack.name.lower(),
        "docstring": (
            "Blocks over what is written: tokens see only what came before."
            if stack.is_decoder
            else "Blocks over a whole text: every token sees all others."
        ),
        "block": name,
        "layers": _layers(stack, both),
        "heads": f"{heads}HEADS",
        "arguments": ["self", "x", *(["tokens"] if reads else []), *(["source"] if cross else [])],
        "needs_time": mask or rotation or config.position.kind == "sinusoidal" or _slices(config),
        "rotation": f"{heads.lower()}angles" if rotation else None,
        "mask": mask,
        "causal": stack.is_decoder,
        "window": stack.window,
        "window_from": stack.window_from,
        "passed": passed,
        "scale_by_layer": stack.attention.scale_by_layer,
        "blocks": {
            "name": name,
            "docstring": f"{parts[0].upper()}{parts[1:]}, each added to the residual stream; {order}.",
            "attention": attention["name"],
            "feed_forward": feed_forward["name"],
            "scale_by_layer": stack.attention.scale_by_layer,
            "cross": cross,
            "arguments": arguments,
            "keywords": keywords,
        },
    }


def _slices(config: ModelConfig) -> bool:
    return config.position.kind == "learned" and not config.position.skip_padding


def _rotations(
    config: ModelConfig, groups: Sequence[Sequence[_Stack]], prefixes: Mapping[str, str]
) -> list[dict[str, Any]]:
    """The functions that compute angles, one for each attention."""
    if config.position.kind != "rotary":
        return []
    found: list[dict[str, Any]] = []
    for group in groups:
        prefix, attention = prefixes[group[0].name], group[0].attention
        low, high = _yarn_range(config, attention.head_dim or config.d_model // attention.heads)
        names = {"name": f"{prefix.lower()}angles", "head_dim": f"{prefix}HEAD_DIM"}
        found.append({**names, "low": low, "high": high})
    return found


def _yarn_range(config: ModelConfig, head_dim: int) -> tuple[float, float]:
    """Between which pairs YaRN blends (Peng et al. 2023, section 3.2); unused by others."""
    scaling = config.position.scaling
    if scaling is None or scaling.kind != "yarn" or scaling.original_length is None:
        return 0.0, 1.0
    turns = scaling.original_length / (2 * math.pi)
    low, high = (
        head_dim * math.log(turns / beta) / (2 * math.log(config.position.theta))
        for beta in (scaling.beta_fast, scaling.beta_slow)
    )
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    return low, high + 0.001 if low == high else high


def _sharpness(config: ModelConfig) -> float:
    """YaRN's factor on cosines and sines."""
    scaling = config.position.scaling
    if scaling is None or scaling.kind != "yarn":
        return 1.0
    if scaling.attention_factor is not None:
        return scaling.attention_factor
    return 0.1 * math.log(scaling.factor) + 1.0 if scaling.factor > 1 else 1.0


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
        "labels": head.labels,
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
        "std": init.std,
        "scale_residual": init.scale_residual and init.kind == "normal",
        "docstring": INITIALIZERS[init.kind],
        "drawn_wide": names,
    }


def decoder_start(config: ModelConfig) -> int:
    """The first token that a decoder reads; 0 where the config does not say."""
    tokens = config.special_tokens
    return next((token for token in (tokens.decoder_start, tokens.bos, tokens.pad) if token is not None), 0)
