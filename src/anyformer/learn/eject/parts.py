"""The attention and the blocks of stacks, as the template writes them."""

from collections.abc import Mapping, Sequence
from typing import Any

from anyformer.config import ModelConfig
from anyformer.learn.eject.stacks import (
    Group,
    Stack,
    distinct_layers,
    is_partial,
    positions_of,
    reads_tokens,
    sharpness,
)

WIDTH = 120
"""Characters in a line."""
ACTIVATIONS = {
    "relu": "F.relu(%s)",
    "relu_squared": "F.relu(%s).square()",
    "gelu": "F.gelu(%s)",
    "gelu_tanh": 'F.gelu(%s, approximate="tanh")',
    "quick_gelu": "F.silu(1.702 * %s) / 1.702",
    "silu": "F.silu(%s)",
    "tanh": "torch.tanh(%s)",
}
NORMS = {
    "layer": "LayerNorm",
    "layer_no_bias": "LayerNorm",
    "rms": "RMSNorm",
    "rms_offset": "OffsetRMSNorm",
    "rms_plain": "PlainRMSNorm",
}


def qk_norm_class(config: ModelConfig) -> str:
    """The class of norms on queries and keys."""
    return {"rms_offset": "OffsetRMSNorm", "rms_plain": "PlainRMSNorm"}.get(config.norm.kind, "RMSNorm")


def attention_part(group: Group) -> dict[str, Any]:
    """The attention of some stacks."""
    config, attention, prefix = group.stacks[0].config, group.attention, group.prefix
    decoder = group.stacks[-1] if group.stacks[-1].is_decoder else None
    cross = config.is_encoder_decoder and decoder is not None
    mask = any(stack.has_mask for stack in group.stacks)
    compares = config.position.kind == "disentangled"
    rotations = rotations_of(config, group)
    is_grouped = (attention.kv_heads or attention.heads) != attention.heads
    # Masks know what is causal; without one, a decoder alone always is, and with an encoder its self-attention.
    needs_causal = decoder is not None and not decoder.has_mask
    causal_argument = needs_causal and (cross or len(group.stacks) > 1)
    none = "=None" if cross else ""
    scale = "" if attention.scale is None and not compares else f"{prefix}SCALE"
    scale_argument = "self.scale" if attention.scale_by_layer else scale
    dropout = f"{prefix}ATTENTION_DROPOUT" if attention.dropout else ""
    operands = _present(
        "query",
        "key",
        "value",
        mask and "attn_mask=mask",
        bool(dropout) and f"dropout_p={dropout} if self.training else 0.0",
        needs_causal and f"is_causal={'causal' if causal_argument else 'True'}",
        bool(scale_argument) and f"scale={scale_argument}",
        is_grouped and "enable_gqa=True",
    )
    scores = f"{scale} q k^T" if scale else "q k^T / sqrt(K)"
    scores = f"{scores}, sink" if attention.sinks else scores
    formula = f"softmax({scores}) v" if attention.softcap is None else f"softmax(c tanh({scores} / c)) v"
    heads = "several heads" if attention.heads > 1 else "one head"
    docstring = f"{formula} in {heads} (Vaswani et al. 2017, equation 1)."
    if is_grouped:
        docstring = f"{formula} in heads that share keys and values (Ainslie et al. 2023)."
    if attention.latent is not None:
        docstring = f"{formula}, k and v made of a narrow vector of each token (DeepSeek-AI 2024, section 2.1)."
    if compares:
        docstring = "softmax((q k^T + q r_k^T + r_q k^T) / sqrt(3 K)) v, r of two places (He et al. 2021, equation 4)."
    return {
        "config": attention,
        "qk_norm": qk_norm_class(config) if attention.qk_norm != "none" else None,
        "by_head": attention.qk_norm == "head",
        "name": f"{group.name}Attention",
        "docstring": docstring,
        "prefix": prefix,
        "rotations": rotations,
        "can_be_unrotated": "none" in (position.kind for position in positions_of(config).values()),
        "heads": f"{prefix}HEADS",
        "kv_heads": f"{prefix}KV_HEADS" if is_grouped else f"{prefix}HEADS",
        "head_dim": f"{group.head_prefix}HEAD_DIM",
        "turned": f"{group.head_prefix}TURNED_DIM",
        "is_explicit": attention.softcap is not None or attention.sinks,
        "scale": scale or f"{group.head_prefix}HEAD_DIM**-0.5",
        "scale_of_scores": scale_argument or f"{group.head_prefix}HEAD_DIM**-0.5",
        "softcap": f"{prefix}SOFTCAP" if attention.softcap is not None else "",
        "dropout": dropout,
        "is_grouped": is_grouped,
        "arguments": _present(
            "self",
            "x",
            cross and "source=None",
            mask and f"mask{none}",
            causal_argument and "causal=False",
            bool(rotations) and f"rotation{none}",
            compares and "relative",
        ),
        "cross": cross,
        "mask": mask,
        "relative": compares,
        "causal_argument": causal_argument,
        "states": "states" if cross else "x",
        "product": call("F.scaled_dot_product_attention", operands, indent=8, before=len("out = ")),
    }


def stack_part(stack: Stack, attention: Mapping[str, Any], feed_forward: str, other: str) -> dict[str, Any]:
    """A stack and its blocks, with the attention that was made for them and calls that make feed-forwards."""
    config, position, both, mask = stack.config, stack.config.position, stack.config.is_encoder_decoder, stack.has_mask
    cross, by_name = both and stack.is_decoder, attention["cross"]
    rotation = bool(attention["rotations"])
    angles = {each["prefix"]: each["call"] for each in attention["rotations"]}
    others = stack.others if stack.pattern else None
    other_rotation = "OTHER_" in angles or (others is not None and others.position is not None)
    slices = position.kind in ("learned", "sinusoidal") and not position.skip_padding
    heads = "" if attention["name"] == "Attention" else f"{stack.name.upper()}_"
    orders = {
        "post": "norms after",
        "branch": "norms before that",
        "sandwich": "norms on both sides",
        "parallel": "both read it at once",
        "parallel_shared": "one norm before both",
    }
    order = orders.get(config.norm.placement, "norms before")
    network = f"{other} if is_other else {feed_forward}" if stack.has_other_network else feed_forward
    parts = "Attention, attention to the source, feed-forward" if cross else "Attention, feed-forward"
    return {
        "name": stack.name,
        "docstring": (
            "Blocks over what is written: tokens see only what came before."
            if stack.is_decoder
            else "Blocks over a whole text: every token sees all others."
        ),
        "block": f"{stack.name}Block" if both else "Block",
        "layers": stack.layers_name,
        "heads": f"{heads}HEADS",
        "arguments": _present("self", "x", reads_tokens(config) and "tokens", cross and "source"),
        "needs_time": mask or rotation or slices,
        "rotation": rotation,
        "angles": angles.get("", ""),
        "other_angles": angles.get("OTHER_", ""),
        "is_mixed": stack.has_other_mask or (rotation and other_rotation),
        "chooses_network": stack.has_other_network,
        "other_rotation": rotation and other_rotation,
        "mask": mask,
        "causal": stack.is_decoder,
        "window": f"{heads}WINDOW" if stack.attention.window is not None else "",
        "has_other_mask": stack.has_other_mask,
        "other_window": "OTHER_WINDOW" if others is not None and others.window is not None else "",
        "passed": _present(
            "x",
            cross and "source",
            mask and ("other_mask if is_other else mask" if stack.has_other_mask else "mask"),
            rotation and ("other_rotation if is_other else rotation" if other_rotation else "rotation"),
            attention["relative"] and "relative",
        ),
        "is_numbered": stack.attention.scale_by_layer or not config.norm.first or stack.has_other_network,
        "distinct": "DISTINCT_LAYERS" if distinct_layers(config) else stack.layers_name,
        "block_docstring": f"{parts}, each added to the residual stream; {order}.",
        "modules": _block_modules(stack, attention["name"], network, cross=cross),
        "cross": cross,
        "block_arguments": _present(
            *("self", "x", cross and "source", mask and "mask", rotation and "rotation"),
            attention["relative"] and "relative",
        ),
        "keywords": _present(
            mask and ("mask=mask" if by_name else "mask"),
            not mask and attention["mask"] and not by_name and "None",
            stack.is_decoder and not mask and attention["causal_argument"] and "causal=True",
            rotation and ("rotation=rotation" if by_name else "rotation"),
            attention["relative"] and "relative",
        ),
    }


def _block_modules(stack: Stack, attention: str, feed_forward: str, *, cross: bool) -> list[tuple[str, str]]:
    """Names of the modules of a block, and how they are made."""
    placement, norm = stack.config.norm.placement, f"{NORMS[stack.config.norm.kind]}(D_MODEL)"
    attention = f"{attention}({'layer' if stack.attention.scale_by_layer else ''})"
    parts = {"attention": attention, **({"cross_attention": attention} if cross else {})}
    modules: list[tuple[str, str]] = []
    for name, made in {**parts, "feed_forward": feed_forward}.items():
        modules.append((name, made))
        if placement != "branch" and (placement, name) != ("parallel_shared", "feed_forward"):
            is_absent = name == "attention" and not stack.config.norm.first
            modules.append((f"{name}_norm", f"{norm} if layer else nn.Identity()" if is_absent else norm))
        if placement in ("branch", "sandwich"):
            modules.append((f"{name}_output_norm", norm))
    return modules


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


def rotations_of(config: ModelConfig, group: Group) -> list[dict[str, Any]]:
    """The functions of angles that an attention calls, and the sizes that they compute with.

    Attentions whose heads differ in size share the functions, which take the sizes as arguments.
    """
    turned = f"{group.head_prefix}{'TURNED_DIM' if group.attention.latent else 'HEAD_DIM'}"
    rotations: list[dict[str, Any]] = []
    for prefix, position in positions_of(config).items():
        if position.kind != "rotary":
            continue
        own = f"{group.head_prefix}{prefix}"
        sizes = {"rotary_dim": f"{own}ROTARY_DIM" if is_partial(position) else turned}
        if is_partial(position):
            sizes["head_dim"] = turned
        if position.scaling is not None and position.scaling.kind == "yarn":
            sizes |= {"low": f"{own}YARN_LOW", "high": f"{own}YARN_HIGH"}
        takes_sizes = bool(group.head_prefix)
        angles, other = f"{prefix.lower()}angles", f"{prefix.lower()}rotation = "
        operands = ["time", "x.device", *(sizes.values() if takes_sizes else ())]
        rotations.append(
            {
                "position": position,
                "prefix": prefix,
                "angles": angles,
                "arguments": ["time", "device", *(sizes if takes_sizes else ())],
                "call": call(angles, operands, indent=8, before=len(other)),
                "sizes": {name: name for name in sizes} if takes_sizes else sizes,
                "partial": is_partial(position),
                "sharpness": sharpness(position, config.max_length),
            }
        )
    return rotations


def module_dict(modules: Sequence[str], *, before: int) -> str:
    """An `nn.ModuleDict` of these entries in a constructor, as formatters break it."""
    entries = f"{{{', '.join(modules)}}}"
    if 12 + len(entries) > WIDTH:
        entries = "{\n" + "".join(f"{' ' * 16}{module},\n" for module in modules) + f"{' ' * 12}}}"
    return call("nn.ModuleDict", [entries], indent=8, before=before)
