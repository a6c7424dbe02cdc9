"""Values of the template of an architecture, from a config: its constants, its parts, and what is said of them."""

import math
from collections.abc import Sequence
from dataclasses import replace
from textwrap import wrap
from typing import Any

from anyformer.blocks.latent_attention import EPS as LATENT_EPS
from anyformer.blocks.position import yarn_range
from anyformer.config import FeedForwardConfig, ModelConfig
from anyformer.learn.eject.parts import (
    ACTIVATIONS,
    NORMS,
    WIDTH,
    attention_part,
    module_dict,
    qk_norm_class,
    stack_part,
)
from anyformer.learn.eject.stacks import (
    Group,
    Stack,
    alike,
    attention_groups,
    distinct_layers,
    is_partial,
    positions_of,
    reads_tokens,
    rotates,
    sharpness,
    stacks_of,
)

POSITIONS = ("none", "sinusoidal", "learned", "rotary", "relative", "disentangled")
INITIALIZERS = {
    "normal": "N(0, std) for every matrix and table, zero for every bias.",
    "truncated_normal": "N(0, std), redrawn beyond two standard deviations, and zero for every bias (BERT).",
    "xavier": "Glorot-uniform matrices, token vectors from N(0, 1 / D), zero for every bias (Vaswani et al. 2017).",
    "t5": "N(0, 1 / inputs) for matrices; queries have the 1 / sqrt(K) that the scores leave out as well (T5).",
}
HASH_FACTOR, HASH_SHIFT = -7046029254386353131, 24
"""Constants of the hash of n-grams, see `anyformer.blocks.embedding`."""
_SCALING = {
    "llama3": ("original_length", "low_frequency", "high_frequency"),
    "longrope": ("original_length", "short_factor", "long_factor"),
}
"""Numbers of a way of scaling that the code uses, beside its factor."""
_Values = dict[str, float | str | Sequence[float] | None]


def architecture(config: ModelConfig) -> dict[str, Any]:
    """The values of architecture.py.jinja."""
    stacks, cross, head = stacks_of(config), config.is_encoder_decoder, config.head
    # Two stacks of the same parts share their classes, and a class takes what one of its uses needs.
    attentions = {group: attention_part(group) for group in attention_groups(stacks)}
    feed_forwards = feed_forward_parts(feed_forward_groups(stacks))
    other = next((part["made"] for group, part in feed_forwards.items() if group.name == "Other"), "")
    parts = [
        stack_part(
            stack,
            next(part for group, part in attentions.items() if stack in group.stacks),
            next(part["made"] for group, part in feed_forwards.items() if stack in group.stacks),
            other,
        )
        for stack in stacks
    ]
    layers = " + ".join(stack.layers_name for stack in stacks)
    return {
        "config": config,
        "constants": constants(config, stacks, list(attentions), feed_forwards),
        "norm": NORMS[config.norm.kind],
        "qk_norm": any(stack.attention.qk_norm != "none" for stack in stacks) and qk_norm_class(config) == "RMSNorm",
        "latent": any(stack.attention.latent is not None for stack in stacks),
        "position_table": _position_table(config),
        "rotates": rotates(config),
        "embedded": _embedded(config),
        "attentions": list(attentions.values()),
        "rotations": {each["angles"]: each for part in attentions.values() for each in part["rotations"]}.values(),
        "feed_forwards": sorted(
            (part for part in feed_forwards.values() if part["is_first"]), key=lambda part: part["experts"] is not None
        ),
        "stacks": parts,
        "cross": cross,
        "two_texts": cross and config.head.kind != "classification",
        "reads_tokens": reads_tokens(config),
        "head_class": head.kind == "language_model"
        and (head.transform or head.bias != "none" or head.scaled or head.scale != 1 or head.softcap),
        "table_width": _table_width(config),
        "transform": ACTIVATIONS.get(head.transform or ""),
        "pooler": ACTIVATIONS.get(head.pooler or ""),
        "init_docstring": INITIALIZERS[config.init.kind],
        "drawn_wide": _drawn_wide(config),
        "depth": f"({layers})" if cross else layers,
    }


def _position_table(config: ModelConfig) -> str:
    rows = "MAX_LENGTH + POSITION_OFFSET" if config.position.offset else "MAX_LENGTH"
    padding = ", padding_idx=POSITION_OFFSET - 1" if config.position.skip_padding else ""
    modules = [f'"table": nn.Embedding({rows}, {_table_width(config)}{padding})']
    return module_dict([*modules, *(['"relative": relative'] if config.position.relative_bias else [])], before=16)


def _table_width(config: ModelConfig) -> str:
    return "D_MODEL" if config.embedding.width is None else "EMBEDDING_WIDTH"


def _embedded(config: ModelConfig) -> str:
    """The modules of a stack's embedding; "" where there are none."""
    embedding = config.embedding
    modules = ['"ngrams": NgramEmbedding()'] if embedding.ngrams > 1 else []
    modules += [f'"segments": nn.Embedding(SEGMENTS, {_table_width(config)})'] if embedding.segments else []
    modules += [f'"norm": {NORMS[config.norm.kind]}({_table_width(config)})'] if embedding.norm else []
    modules += ['"projection": nn.Linear(EMBEDDING_WIDTH, D_MODEL)'] if embedding.width else []
    return module_dict(modules, before=17) if modules else ""


def _drawn_wide(config: ModelConfig) -> str:
    """Names of the weights that T5 draws with the deviation of the config."""
    names = ["token_embedding.table.weight"]
    names += ["source_embedding.table.weight"] if config.source_vocab_size is not None else []
    names += ["head.projection.weight"] if config.head.kind == "language_model" and not config.embedding.tied else []
    return ", ".join(f'"{name}"' for name in names) + ("," if len(names) == 1 else "")


def constants(
    config: ModelConfig,
    stacks: Sequence[Stack],
    attentions: Sequence[Group],
    feed_forwards: dict[Group, dict[str, Any]],
) -> list[tuple[str, str]]:
    """Names and values of the numbers that the code uses in Python's notation, sizes first."""
    position, embedding, head, tokens = config.position, config.embedding, config.head, config.special_tokens
    is_fairseq = (position.kind, position.layout) == ("sinusoidal", "fairseq")
    kind, pattern = position.kind, stacks[0].pattern
    has_ngrams, has_labels = embedding.ngrams > 1, "classification" in head.kind
    reads_start = config.is_encoder_decoder and head.kind in ("language_model", "classification")
    starts = (tokens.decoder_start, tokens.bos, tokens.pad, 0)
    values: _Values = {
        "VOCAB_SIZE": config.vocab_size,
        "SOURCE_VOCAB_SIZE": config.source_vocab_size,
        "D_MODEL": config.d_model,
        "EMBEDDING_WIDTH": embedding.width,
        "MAX_LENGTH": config.max_length,
        **{stack.layers_name: stack.layers for stack in stacks},
        "DISTINCT_LAYERS": distinct_layers(config),
        **{name: value for group in attentions for name, value in _heads(config, group).items()},
        **feed_forward_sizes(feed_forwards),
        "POSITION_OFFSET": (position.offset or None) if kind == "learned" else position.offset if is_fairseq else None,
        "BUCKETS": position.buckets if position.has_buckets else None,
        "MAX_DISTANCE": position.max_distance if position.has_buckets else None,
        **_angles(config, attentions),
        "NGRAMS": embedding.ngrams if has_ngrams else None,
        "NGRAM_ROWS": embedding.ngram_rows if has_ngrams else None,
        "HASH_FACTOR": HASH_FACTOR if has_ngrams else None,
        "HASH_SHIFT": HASH_SHIFT if has_ngrams else None,
        "SEGMENTS": embedding.segments or None,
        "PADDING": embedding.padding,
        "DECODER_START": next(token for token in starts if token is not None) if reads_start else None,
        "OTHER_LAYERS": pattern or None,
        **{name: value for group in attentions for name, value in _scores(config, group).items()},
        "NORM_EPS": config.norm.eps,
        "LATENT_EPS": LATENT_EPS if any(group.attention.latent for group in attentions) else None,
        "EMBEDDING_SCALE": embedding.scale if embedding.scale != 1.0 else None,
        "RESIDUAL_SCALE": config.residual_scale if config.residual_scale != 1.0 else None,
        "HEAD_SCALE": head.scale if head.scale != 1.0 else None,
        "HEAD_SOFTCAP": head.softcap,
        "DROPOUT": config.dropout or None,
        "EMBEDDING_DROPOUT": embedding.dropout or None,
        **{f"{group.prefix}ATTENTION_DROPOUT": group.attention.dropout or None for group in attentions},
        **feed_forward_factors(feed_forwards),
        "LABEL_COUNT": head.labels if has_labels else None,
        "HEAD_DROPOUT": (head.dropout or None) if has_labels else None,
        "INIT_STD": config.init.std if config.init.kind != "xavier" else None,
    }
    return [(name, literal(value)) for name, value in values.items() if value is not None]


def literal(value: float | str | Sequence[float]) -> str:
    """A number as Python reads it back: the `repr` of one that is not finite is a name that no file has."""
    if isinstance(value, str):
        return f'"{value}"'
    if isinstance(value, Sequence):
        lines = wrap(", ".join(map(literal, value)), WIDTH - 10, break_on_hyphens=False)
        several = "".join(f"    *({line.rstrip(',')}),\n" for line in lines)
        return f"[{lines[0]}]" if len(lines) == 1 else f"[\n{several}]"
    return repr(value) if math.isfinite(value) else f'float("{value}")'


def _heads(config: ModelConfig, group: Group) -> _Values:
    attention, latent = group.attention, group.attention.latent
    widths = {
        f"{group.head_prefix}{prefix}ROTARY_DIM": int(group.turned_dim * position.rotary_fraction)
        for prefix, position in positions_of(config).items()
        if is_partial(position)
    }
    return {
        f"{group.prefix}HEADS": attention.heads,
        f"{group.prefix}KV_HEADS": attention.kv_heads if attention.kv_heads != attention.heads else None,
        f"{group.head_prefix}HEAD_DIM": group.head_dim,
        **widths,
        f"{group.head_prefix}TURNED_DIM": latent and latent.rotary_dim,
        f"{group.prefix}VALUE_DIM": latent and latent.value_dim,
        f"{group.prefix}RANK": latent and latent.rank,
        f"{group.prefix}QUERY_RANK": latent and latent.query_rank,
    }


def _angles(config: ModelConfig, groups: Sequence[Group]) -> _Values:
    """The numbers of rotary positions; those of YaRN depend on the width of heads."""
    values: _Values = {}
    for prefix, position in positions_of(config).items():
        if position.kind != "rotary":
            continue
        scaling, factor = position.scaling, sharpness(position, config.max_length)
        values[f"{prefix}THETA"] = position.theta
        if scaling is not None:
            values |= {f"{prefix}ROPE_FACTOR": scaling.factor} if scaling.kind != "longrope" else {}
            values |= {f"{prefix}{name.upper()}": getattr(scaling, name) for name in _SCALING.get(scaling.kind, ())}
        if scaling is not None and scaling.kind == "yarn" and scaling.original_length is not None:
            for group in groups:
                rotated = int(group.turned_dim * position.rotary_fraction)
                low, high = yarn_range(scaling, scaling.original_length, position.theta, rotated)
                values |= {f"{group.head_prefix}{prefix}YARN_LOW": low, f"{group.head_prefix}{prefix}YARN_HIGH": high}
        values[f"{prefix}ATTENTION_FACTOR"] = factor if factor != 1.0 else None
    return values


def _scores(config: ModelConfig, group: Group) -> _Values:
    attention, stack, scale = group.attention, group.stacks[0], group.attention.scale
    if config.position.kind == "disentangled":  # the sum of three scores
        scale = (group.head_dim**-0.5 if scale is None else scale) / 3**0.5
    return {
        f"{group.prefix}SCALE": None if scale is None else float(scale),
        f"{group.prefix}SOFTCAP": attention.softcap,
        f"{group.prefix}WINDOW": attention.window,
        "OTHER_WINDOW": stack.others.window if stack.others is not None and stack.has_other_mask else None,
    }


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
