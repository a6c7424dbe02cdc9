"""The stacks of a model, and their attention, feed-forward and blocks as the template writes them.

Stacks share a part where it is the same in both: its class, and its constants.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from anyformer.blocks.position import frequencies
from anyformer.config import AttentionConfig, FeedForwardConfig, ModelConfig, OtherLayers

WIDTH = 120
"""Characters in a line."""
ACTIVATIONS = {
    "relu": "F.relu(%s)",
    "relu_squared": "F.relu(%s).square()",
    "gelu": "F.gelu(%s)",
    "gelu_tanh": 'F.gelu(%s, approximate="tanh")',
    "silu": "F.silu(%s)",
    "tanh": "torch.tanh(%s)",
}


@dataclass(frozen=True)
class Stack:
    """One stack, and what its blocks are made of."""

    name: str
    attention: AttentionConfig
    feed_forward: FeedForwardConfig
    layers: int
    is_decoder: bool
    has_relative_positions: bool
    others: OtherLayers | None

    @property
    def window(self) -> int | None:
        """Window of the layers that have one; None: none has."""
        return self.attention.window if self.others is None else self.others.window

    @property
    def window_from(self) -> int:
        """The first layer that has the window, where others have none; 0: all or none."""
        return 0 if self.others is None else len(self.others.first)

    @property
    def has_mask(self) -> bool:
        """Whether its attention is told by a mask what a token sees."""
        return self.has_relative_positions or self.window is not None


@dataclass(frozen=True)
class Group:
    """Stacks that share a part.

    Attributes:
        stacks: One or both.
        name: What the class begins with: that of the stack, or nothing where there is no other class.
    """

    stacks: tuple[Stack, ...]
    name: str

    @property
    def prefix(self) -> str:
        """Prefix of constants."""
        return f"{self.name.upper()}_" if self.name else ""

    @property
    def attention(self) -> AttentionConfig:
        """The attention of the first stack, which is that of all where they are grouped by it."""
        return self.stacks[0].attention

    @property
    def feed_forward(self) -> FeedForwardConfig:
        """The feed-forward of the first stack, which is that of all where they are grouped by it."""
        return self.stacks[0].feed_forward


def stacks_of(config: ModelConfig) -> list[Stack]:
    """The encoder and the decoder, as far as a model has them."""
    attention, feed_forward = config.attention, config.feed_forward
    relative = config.position.has_bias
    encoder = Stack("Encoder", attention, feed_forward, config.encoder_layers, False, relative, config.other_layers)
    if config.encoder_layers:
        attention = config.decoder_attention or attention
        feed_forward = config.decoder_feed_forward or feed_forward
    decoder = Stack("Decoder", attention, feed_forward, config.decoder_layers, True, relative, config.other_layers)
    return [stack for stack in (encoder, decoder) if stack.layers]


def alike(stacks: Sequence[Stack], part: Callable[[Stack], object]) -> list[Group]:
    """Both stacks together where the part is the same in them, else each by itself."""
    if len({part(stack) for stack in stacks}) == 1:
        return [Group(tuple(stacks), "")]
    return [Group((stack,), stack.name) for stack in stacks]


def layers_name(stack: Stack, both: bool) -> str:
    """The constant of a stack's number of layers, alone or where there are both."""
    return f"{stack.name.upper()}_LAYERS" if both else "LAYERS"


def qk_norm_class(config: ModelConfig) -> str:
    """The class of norms on queries and keys."""
    return {"rms_offset": "OffsetRMSNorm", "rms_plain": "PlainRMSNorm"}.get(config.norm.kind, "RMSNorm")


def attention_part(config: ModelConfig, group: Group) -> dict[str, Any]:
    """The attention of some stacks."""
    attention, prefix = group.attention, group.prefix
    decoder = group.stacks[-1] if group.stacks[-1].is_decoder else None
    cross = config.is_encoder_decoder and decoder is not None
    mask = any(stack.has_mask for stack in group.stacks)
    rotation = config.position.kind == "rotary"
    is_grouped = (attention.kv_heads or attention.heads) != attention.heads
    # Masks know what is causal; without one, a decoder alone always is, and with an encoder its self-attention.
    needs_causal = decoder is not None and not decoder.has_mask
    causal_argument = needs_causal and (cross or len(group.stacks) > 1)
    none = "=None" if cross else ""
    scale = "" if attention.scale is None else f"{prefix}SCALE"
    scale_argument = "self.scale" if attention.scale_by_layer else scale
    operands = _present(
        "query",
        "key",
        "value",
        mask and "attn_mask=mask",
        bool(attention.dropout) and f"dropout_p={prefix}ATTENTION_DROPOUT if self.training else 0.0",
        needs_causal and f"is_causal={'causal' if causal_argument else 'True'}",
        bool(scale_argument) and f"scale={scale_argument}",
        is_grouped and "enable_gqa=True",
    )
    formula = f"softmax({scale} q k^T) v" if scale else "softmax(q k^T / sqrt(K)) v"
    heads = "several heads" if attention.heads > 1 else "one head"
    docstring = f"{formula} in {heads} (Vaswani et al. 2017, equation 1)."
    if is_grouped:
        docstring = f"{formula} in heads that share keys and values (Ainslie et al. 2023)."
    return {
        "config": attention,
        "qk_norm": qk_norm_class(config) if attention.qk_norm == "head" else None,
        "name": f"{group.name}Attention",
        "docstring": docstring,
        "prefix": prefix,
        "angles": f"{prefix.lower()}angles",
        "rotary_dim": f"{prefix}{'ROTARY' if is_partial(config) else 'HEAD'}_DIM",
        "partial": is_partial(config),
        "heads": f"{prefix}HEADS",
        "kv_heads": f"{prefix}KV_HEADS" if is_grouped else f"{prefix}HEADS",
        "head_dim": f"{prefix}HEAD_DIM",
        "scale": scale or f"{prefix}HEAD_DIM**-0.5",
        "arguments": _present(
            "self",
            "x",
            cross and "source=None",
            mask and f"mask{none}",
            causal_argument and "causal=False",
            rotation and f"rotation{none}",
        ),
        "cross": cross,
        "mask": mask,
        "rotation": rotation,
        "causal_argument": causal_argument,
        "states": "states" if cross else "x",
        "product": call("F.scaled_dot_product_attention", operands, indent=8, before=len("out = ")),
    }


def feed_forward_part(group: Group) -> dict[str, Any]:
    """The feed-forward of some stacks."""
    part = group.feed_forward
    gated = {"silu": "SwiGLU", "gelu": "GEGLU", "gelu_tanh": "GEGLU", "relu": "ReGLU"}.get(part.activation, "gated")
    docstring = "down(act(up(x))), the same for every token (Vaswani et al. 2017, equation 2)."
    if part.gated:
        docstring = f"down(act(gate(x)) * up(x)): {gated} (Shazeer 2020, equation 6)."
    return {
        "config": part,
        "name": f"{group.name}FeedForward",
        "docstring": docstring,
        "width": f"{group.prefix}WIDTH",
        "activation": ACTIVATIONS[part.activation],
        "dropout": f"{group.prefix}FEED_FORWARD_DROPOUT" if part.dropout else "",
    }


def stack_part(
    config: ModelConfig, stack: Stack, attention: Mapping[str, Any], feed_forward: Mapping[str, Any]
) -> dict[str, Any]:
    """A stack and its blocks, with the parts that were made for them."""
    position, both, mask = config.position, config.is_encoder_decoder, stack.has_mask
    cross, by_name = both and stack.is_decoder, attention["cross"]
    rotation = position.kind == "rotary"
    slices = position.kind in ("learned", "sinusoidal") and not position.skip_padding
    heads = "" if attention["name"] == "Attention" else f"{stack.name.upper()}_"
    orders = {"post": "norms after", "parallel": "both read it at once", "parallel_shared": "one norm before both"}
    order = orders.get(config.norm.placement, "norms before")
    parts = "Attention, attention to the source, feed-forward" if cross else "Attention, feed-forward"
    return {
        "name": stack.name,
        "attribute": stack.name.lower(),
        "docstring": (
            "Blocks over what is written: tokens see only what came before."
            if stack.is_decoder
            else "Blocks over a whole text: every token sees all others."
        ),
        "block": f"{stack.name}Block" if both else "Block",
        "layers": layers_name(stack, both),
        "heads": f"{heads}HEADS",
        "arguments": _present("self", "x", reads_tokens(config) and "tokens", cross and "source"),
        "needs_time": mask or rotation or slices,
        "rotation": f"{heads.lower()}angles" if rotation else None,
        "mask": mask,
        "causal": stack.is_decoder,
        "window": f"{heads}WINDOW" if stack.window is not None else "",
        "window_from": stack.window_from,
        "passed": _present(
            "x",
            cross and "source",
            mask and (f"mask if layer < {heads}WINDOW_FROM else window" if stack.window_from else "mask"),
            rotation and "rotation",
        ),
        "scale_by_layer": stack.attention.scale_by_layer,
        "distinct": "DISTINCT_LAYERS" if distinct_layers(config) else layers_name(stack, both),
        "block_docstring": f"{parts}, each added to the residual stream; {order}.",
        "attention": attention["name"],
        "feed_forward": feed_forward["name"],
        "cross": cross,
        "block_arguments": _present("self", "x", cross and "source", mask and "mask", rotation and "rotation"),
        "keywords": _present(
            mask and ("mask=mask" if by_name else "mask"),
            not mask and attention["mask"] and not by_name and "None",
            stack.is_decoder and not mask and attention["causal_argument"] and "causal=True",
            rotation and ("rotation=rotation" if by_name else "rotation"),
        ),
    }


def distinct_layers(config: ModelConfig) -> int | None:
    """The number of blocks that more layers share; None: each layer has one."""
    distinct = config.distinct_layers
    return distinct if distinct is not None and distinct < config.encoder_layers else None


def reads_tokens(config: ModelConfig) -> bool:
    """Whether a stack needs the ids of its tokens, and not only their vectors."""
    return config.position.skip_padding or config.embedding.ngrams > 1


def _present(*items: str | bool) -> list[str]:
    """The texts, without those whose condition does not hold."""
    return [item for item in items if isinstance(item, str)]


def call(function: str, operands: Sequence[str], *, indent: int, before: int) -> str:
    """A call, on one line if there is room, as formatters break it."""
    line = f"{function}({', '.join(operands)})"
    if indent + before + len(line) <= WIDTH:
        return line
    inner, outer = " " * (indent + 4), " " * indent
    if len(operands) == 1 or len(inner) + len(", ".join(operands)) <= WIDTH:
        return f"{function}(\n{inner}{', '.join(operands)}\n{outer})"
    return f"{function}(\n" + "".join(f"{inner}{operand},\n" for operand in operands) + f"{outer})"


def is_partial(config: ModelConfig) -> bool:
    """Whether only a part of each head is rotated."""
    return config.position.kind == "rotary" and config.position.rotary_fraction != 1.0


def rotary_dim(config: ModelConfig, head_dim: int) -> int:
    """Numbers of a head that are rotated."""
    return int(head_dim * config.position.rotary_fraction)


def module_dict(modules: Sequence[str], *, before: int) -> str:
    """An `nn.ModuleDict` of these entries in a constructor, as formatters break it."""
    entries = f"{{{', '.join(modules)}}}"
    if 12 + len(entries) > WIDTH:
        entries = "{\n" + "".join(f"{' ' * 16}{module},\n" for module in modules) + f"{' ' * 12}}}"
    return call("nn.ModuleDict", [entries], indent=8, before=before)


def yarn_range(config: ModelConfig, head_dim: int) -> tuple[float, float]:
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


def sharpness(config: ModelConfig) -> float:
    """YaRN's and LongRoPE's factor on cosines and sines."""
    scaling = config.position.scaling
    if scaling is None or scaling.kind not in ("yarn", "longrope"):
        return 1.0
    length, pairs = torch.zeros(1, 1, dtype=torch.long), len(scaling.short_factor) or 32
    return frequencies(config.position, 2 * pairs, config.max_length, length)[1]
