"""Feed-forward networks and mixtures of experts as the template writes them."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from anyformer.config import FeedForwardConfig
from anyformer.learn.eject.parts import ACTIVATIONS, Group, Stack, alike


def feed_forward_groups(stacks: Sequence[Stack]) -> list[Group]:
    """The networks of the stacks, those of layers that have another, and those beside experts that compute every token;
    each group as a stack that has it as its feed-forward."""
    groups = alike(stacks, lambda stack: stack.feed_forward)
    others = [(stack, stack.others.feed_forward) for stack in stacks if stack.others and stack.has_other_network]
    groups += [Group((replace(stack, feed_forward=other),), "Other") for stack, other in others if other is not None]
    for group in [*groups]:
        config = group.feed_forward
        if config.experts is not None and config.experts.shared:
            shared = replace(config, width=config.experts.shared * config.width, experts=None)
            groups.append(Group((replace(group.stacks[0], feed_forward=shared),), f"{group.name}Shared"))
    return groups


def feed_forward_parts(groups: Sequence[Group]) -> dict[Group, dict[str, Any]]:
    """The part of each group. Networks that differ by width alone are of one class, that of the first one's part."""
    kinds: dict[FeedForwardConfig, list[Group]] = {}
    for group in groups:
        config = group.feed_forward
        kinds.setdefault(config if config.experts else replace(config, width=1), []).append(group)
    dense = [kind for kind in kinds if kind.experts is None]
    parts: dict[Group, dict[str, Any]] = {}
    for kind, members in kinds.items():
        first, experts, takes_width = members[0], kind.experts, len(members) > 1
        name = f"{first.name}Experts" if experts else "FeedForward" if len(dense) == 1 else f"{first.name}FeedForward"
        part = {
            "config": kind,
            "experts": experts,
            "is_grouped": experts is not None and experts.used_groups < experts.groups,
            "name": name,
            "docstring": _docstring(kind),
            "prefix": first.prefix,
            "takes_width": takes_width,
            "width": "width" if takes_width else f"{first.prefix}WIDTH",
            "inner": _inner(kind, first.prefix),
            "dropout": f"{first.prefix}FEED_FORWARD_DROPOUT" if kind.dropout else "",
        }
        for group in members:
            made = f"{name}({f'{group.prefix}WIDTH' if takes_width else ''})"
            parts[group] = {**part, "made": made, "is_first": group is first}
    for group, part in parts.items():
        part["shared"] = next((each["made"] for it, each in parts.items() if it.name == f"{group.name}Shared"), "")
    return parts


def feed_forward_sizes(parts: dict[Group, dict[str, Any]]) -> dict[str, int | None]:
    """Names and values of the sizes in the code; None: it has no such."""
    sizes: dict[str, int | None] = {}
    for group, part in parts.items():
        experts, prefix = group.feed_forward.experts, group.prefix
        sizes[f"{prefix}WIDTH"] = group.feed_forward.width
        if experts is not None:
            sizes |= {f"{prefix}EXPERTS": experts.count, f"{prefix}USED": experts.used}
            grouped = {f"{prefix}GROUPS": experts.groups, f"{prefix}USED_GROUPS": experts.used_groups}
            sizes |= grouped if part["is_grouped"] else {}
    return sizes


def feed_forward_factors(parts: dict[Group, dict[str, Any]]) -> dict[str, float | None]:
    """Names and values of the factors, bounds and rates in the code; None: it has no such."""
    factors: dict[str, float | None] = {}
    for group, part in parts.items():
        config, prefix = group.feed_forward, group.prefix
        scale = 1.0 if config.experts is None else config.experts.scale
        own = {"EXPERTS_SCALE": scale if scale != 1.0 else None, "LIMIT": config.limit}
        own |= {"UP_OFFSET": config.up_offset or None, "FEED_FORWARD_DROPOUT": config.dropout or None}
        factors |= {f"{prefix}{name}": value for name, value in own.items()} if part["is_first"] else {}
    return factors


def _docstring(config: FeedForwardConfig) -> str:
    gated = {"silu": "SwiGLU", "gelu": "GEGLU", "gelu_tanh": "GEGLU", "relu": "ReGLU"}.get(config.activation, "gated")
    if config.experts is not None:
        return "Networks of which a router chooses USED for each token (Shazeer et al. 2017, section 2)."
    if config.gated:
        return f"down(act(gate(x)) * up(x)): {gated} (Shazeer 2020, equation 6)."
    return "down(act(up(x))), the same for every token (Vaswani et al. 2017, equation 2)."


def _inner(config: FeedForwardConfig, prefix: str) -> list[str]:
    """Lines that compute what is between the matrices of a network."""
    call, act = "self.%s(x)" if config.experts is None else "F.linear(states, %s)", ACTIVATIONS[config.activation]
    gate, up = (call % f"{'*' if config.experts and config.bias else ''}{name}" for name in ("gate", "up"))
    lines: list[str] = []
    if config.limit is not None or config.up_offset:
        limit = f"{prefix}LIMIT"
        bounds = ("", "") if config.limit is None else (f".clamp(max={limit})", f".clamp(-{limit}, {limit})")
        offset = f" + {prefix}UP_OFFSET" if config.up_offset else ""
        lines = [f"opening = {gate}{bounds[0]}", f"factor = {up}{bounds[1]}{offset}"]
        gate, up = "opening", "factor"
    inner = act % gate + " * " + up if config.gated else act % up
    return [*lines, f"inner = {f'self.dropout({inner})' if config.dropout else inner}"]
