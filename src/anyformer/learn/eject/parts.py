"""The attention, the feed-forward and the blocks of a stack, as the template writes them."""

from collections.abc import Mapping, Sequence
from typing import Any

from anyformer.config import ModelConfig
from anyformer.learn.eject.stacks import Group, Stack, layers_name

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


def attention_part(config: ModelConfig, group: Group) -> dict[str, Any]:
    """The attention of some stacks."""
    attention, prefix = group.stacks[0].attention, group.prefix
    decoder = group.stacks[-1] if group.stacks[-1].is_decoder else None
    cross = config.is_encoder_decoder and decoder is not None
    mask = any(stack.has_mask for stack in group.stacks)
    rotation = config.position.kind == "rotary"
    is_grouped = (attention.kv_heads or attention.heads) != attention.heads
    # Masks know what is causal; without one, a decoder alone always is, and with an encoder its self-attention.
    needs_causal = decoder is not None and not decoder.has_mask
    causal_argument = needs_causal and (cross or len(group.stacks) > 1)
    none = "=None" if cross else ""
    arguments = ["self", "x"]
    arguments += ["source=None"] if cross else []
    arguments += [f"mask{none}"] if mask else []
    arguments += ["causal=False"] if causal_argument else []
    arguments += [f"rotation{none}"] if rotation else []
    scale = None if attention.scale is None else f"{prefix}SCALE"
    operands = ["query", "key", "value"]
    operands += ["attn_mask=mask"] if mask else []
    operands += [f"dropout_p={prefix}ATTENTION_DROPOUT if self.training else 0.0"] if attention.dropout else []
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
        "name": f"{group.name}Attention",
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
        "product": call("F.scaled_dot_product_attention", operands, indent=8, before=len("out = ")),
    }


def feed_forward_part(group: Group) -> dict[str, Any]:
    """The feed-forward of some stacks."""
    part = group.stacks[0].feed_forward
    gated = {"silu": "SwiGLU", "gelu": "GEGLU", "gelu_tanh": "GEGLU", "relu": "ReGLU"}.get(part.activation, "gated")
    docstring = "down(act(up(x))), the same for every token (Vaswani et al. 2017, equation 2)."
    if part.gated:
        docstring = f"down(act(gate(x)) * up(x)): {gated} (Shazeer 2020, equation 6)."
    return {
        "name": f"{group.name}FeedForward",
        "docstring": docstring,
        "width": f"{group.prefix}WIDTH",
        "bias": part.bias,
        "gated": part.gated,
        "activation": ACTIVATIONS[part.activation],
        "dropout": f"{group.prefix}FEED_FORWARD_DROPOUT" if part.dropout else "",
    }


def stack_part(
    config: ModelConfig, stack: Stack, attention: Mapping[str, Any], feed_forward: Mapping[str, Any]
) -> dict[str, Any]:
    """A stack and its blocks, with the parts that were made for them."""
    mask = stack.has_mask
    cross = config.is_encoder_decoder and stack.is_decoder
    named = attention["cross"]
    rotation = config.position.kind == "rotary"
    causal = stack.is_decoder and not mask and attention["causal_argument"]
    keywords = ["mask=mask" if named else "mask"] if mask else ["None"] if attention["mask"] and not named else []
    keywords += ["causal=True"] if causal else []
    keywords += ["rotation=rotation" if named else "rotation"] if rotation else []
    heads = "" if attention["name"] == "Attention" else f"{stack.name.upper()}_"
    arguments = ["self", "x", *(["source"] if cross else []), *(["mask"] if mask else [])]
    arguments += ["rotation"] if rotation else []
    passed_mask = f"mask if layer < {heads}WINDOW_FROM else window" if stack.window_from else "mask"
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
    return {
        "name": stack.name,
        "attribute": stack.name.lower(),
        "docstring": (
            "Blocks over what is written: tokens see only what came before."
            if stack.is_decoder
            else "Blocks over a whole text: every token sees all others."
        ),
        "block": name,
        "layers": layers_name(stack, both),
        "heads": f"{heads}HEADS",
        "arguments": ["self", "x", *(["tokens"] if reads else []), *(["source"] if cross else [])],
        "needs_time": mask or rotation or config.position.kind == "sinusoidal" or _slices(config),
        "rotation": f"{heads.lower()}angles" if rotation else None,
        "mask": mask,
        "causal": stack.is_decoder,
        "window": f"{heads}WINDOW" if stack.window is not None else "",
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


def call(function: str, operands: Sequence[str], *, indent: int, before: int) -> str:
    """A call, on one line if there is room, as formatters break it."""
    line = f"{function}({', '.join(operands)})"
    if indent + before + len(line) <= WIDTH:
        return line
    inner, outer = " " * (indent + 4), " " * indent
    if len(inner) + len(", ".join(operands)) <= WIDTH:
        return f"{function}(\n{inner}{', '.join(operands)}\n{outer})"
    return f"{function}(\n" + "".join(f"{inner}{operand},\n" for operand in operands) + f"{outer})"
