"""Rotary positions, and layers that differ in their windows and positions, as many families have them: in config.json,
and in the rows of weights.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, cast

from anyformer.config import HeadKind, ModelConfig, OtherLayers, PositionConfig
from anyformer.errors import UserError, quote
from anyformer.families.base import Raw, Values
from anyformer.families.rows import Operation, Pairs, Row, linear, rotary_order, split_heads
from anyformer.schema import make

_ROPE = {
    "linear": {},
    "dynamic": {},
    "llama3": {"low_frequency": "low_freq_factor", "high_frequency": "high_freq_factor"},
    "yarn": {"beta_fast": "beta_fast", "beta_slow": "beta_slow", "truncate": "truncate"},
    "longrope": {"short_factor": "short_factor", "long_factor": "long_factor"},
}
"""Kinds of scaling: fields of RotaryScaling and their names in a config.json."""
ORIGINAL, _PARTIAL = "original_max_position_embeddings", "partial_rotary_factor"


def read_rope(raw: Raw, values: Values, head: HeadKind) -> Values:
    """Rotary positions. Raises UserError for a scaling that is not known."""
    rope: Raw = raw.get("rope_scaling") or raw.get("rope_parameters") or {}
    kind = rope.get("rope_type") or rope.get("type") or "default"
    theta = float(rope.get("rope_theta") or values["position.theta"] or 10_000.0)
    position: Values = {"position.theta": theta}
    if "position.rotary_fraction" in values:
        position["position.rotary_fraction"] = rope.get(_PARTIAL) or values["position.rotary_fraction"]
    if kind == "default":
        return position
    if kind not in _ROPE:
        raise UserError(
            f"config.json: the rope scaling {quote(kind)} is none of linear, dynamic, llama3, yarn and longrope."
        )
    scaling: dict[str, Any] = {"kind": kind, "factor": rope.get("factor")}
    if kind in ("llama3", "yarn", "longrope"):
        scaling["original_length"] = raw.get(ORIGINAL) or rope.get(ORIGINAL) or values["max_length"]
        scaling["factor"] = scaling["factor"] or values["max_length"] / scaling["original_length"]
    if kind == "llama3":
        scaling |= {ours: rope[theirs] for ours, theirs in _ROPE[kind].items()}
    elif kind == "yarn":
        scaling |= {name: rope[name] for name in _ROPE[kind] if rope.get(name) is not None}
        scaling["attention_factor"] = _attention_factor(rope, scaling["factor"])
    elif kind == "longrope":
        if missing := [name for name in _ROPE[kind] if not rope.get(name)]:
            raise UserError(f"config.json: longrope scaling has no {missing[0]}.")
        scaling |= {name: tuple(rope[name]) for name in _ROPE[kind]}
        scaling["attention_factor"] = rope.get("attention_factor")
    return {**position, "position.scaling": scaling}


def yarn(factor: float, original_length: int, **others: Any) -> dict[str, Any]:
    """The `rope_scaling` of a preset with YaRN's usual range."""
    range_ = {"beta_fast": 32.0, "beta_slow": 1.0}
    return {"rope_type": "yarn", "factor": factor, ORIGINAL: original_length, **range_, **others}


def _attention_factor(rope: Raw, factor: float) -> float | None:
    """YaRN's factor on cosines and sines where it is given, or follows from DeepSeek's two mscales."""
    mscale, mscale_all_dim = rope.get("mscale"), rope.get("mscale_all_dim")
    if rope.get("attention_factor") is not None or not (mscale and mscale_all_dim):
        return rope.get("attention_factor")
    logarithm = 0.1 * math.log(max(factor, 1.0))
    return (mscale * logarithm + 1) / (mscale_all_dim * logarithm + 1)


def write_rope(config: ModelConfig) -> dict[str, Any]:
    """Rotary positions in both forms, so that older readers understand them as well."""
    scaling, theta, fraction = config.position.scaling, config.position.theta, config.position.rotary_fraction
    partial = {} if fraction == 1.0 else {_PARTIAL: fraction}
    if scaling is None:
        return {"rope_scaling": None, "rope_parameters": {"rope_type": "default", "rope_theta": theta, **partial}}
    rope: dict[str, Any] = {"rope_type": scaling.kind, "rope_theta": theta, "factor": scaling.factor, **partial}
    optional: dict[str, float | None] = {ORIGINAL: scaling.original_length}
    if scaling.kind in ("yarn", "longrope"):
        optional["attention_factor"] = scaling.attention_factor
    rope |= {name: value for name, value in optional.items() if value is not None}
    ours = {theirs: getattr(scaling, name) for name, theirs in _ROPE[scaling.kind].items()}
    rope |= {name: list(value) if isinstance(value, tuple) else value for name, value in ours.items()}
    return {"rope_scaling": rope, "rope_parameters": rope}


LAYER_TYPES = ("full_attention", "sliding_attention")
"""Names of layers without and with a window in `layer_types`."""


def read_layer_types(raw: Raw, layers: int, has_window: Callable[[int], bool]) -> list[str]:
    """The type of each layer in `layer_types`, or by a family's rule where config.json doesn't list them.

    Raises UserError for a list of another length, or a type that is not known.
    """
    types = read_list(raw, "layer_types", layers)
    if types is None:
        return [LAYER_TYPES[has_window(layer)] for layer in range(layers)]
    for name in types:
        if name not in LAYER_TYPES:
            known = " and ".join(LAYER_TYPES)
            raise UserError(f"config.json: the layer type {quote(name)} is not supported ({known} are).")
    return types


def read_list(raw: Raw, name: str, layers: int) -> list[Any] | None:
    """A field of config.json with an entry for each layer. Raises UserError for a list of another length."""
    entries: Any = raw.get(name)
    if entries is None:
        return None
    if not isinstance(entries, list | tuple):
        raise UserError(f"config.json: {name} is a list with an entry for each layer, not {quote(entries)}.")
    listed = [*cast("Sequence[Any]", entries)]
    if len(listed) != layers:
        raise UserError(f"config.json: {name} has {len(listed)} entries for {layers} layers.")
    return listed


def read_period(raw: Raw, name: str, default: int) -> int:
    """A field of config.json that says how many layers there are to one of a kind. Raises UserError where it is 0."""
    given: Any = raw.get(name)
    period = default if given is None else given
    if not isinstance(period, int) or period < 1:
        raise UserError(f"config.json: {name} is a number of layers, at least 1, not {quote(period)}.")
    return period


def layers_with_window(types: Sequence[str], window: int | None, **fields: Any) -> Values:
    """The layers whose type has a window, and whatever else they have of their own."""
    others = OtherLayers.from_list([name == LAYER_TYPES[1] for name in types], window=window, **fields)
    if others is not None and not fields and "." not in others.first + others.then:
        return {"attention.window": window}
    return {"other_layers": others}


def write_layer_types(config: ModelConfig) -> list[str]:
    """The inverse of `layers_with_window`."""
    layers = config.decoder_layers or config.encoder_layers
    if config.other_layers is None:
        return [LAYER_TYPES[config.attention.window is not None]] * layers
    return [LAYER_TYPES[other is not None] for other in config.others(layers)]


def window_of(config: ModelConfig) -> int | None:
    """The window of the layers that have one; None: none has."""
    return (config.other_layers and config.other_layers.window) or config.attention.window


def write_windows(config: ModelConfig) -> dict[str, Any]:
    """The layers that have a window, and its length, which config.json has in any case."""
    return {"sliding_window": window_of(config) or config.max_length, "layer_types": write_layer_types(config)}


def read_layers(
    raw: Raw,
    values: Values,
    head: HeadKind,
    types: list[str],
    window: int | None,
    thetas: tuple[float, float],
    *,
    scales_both: bool = False,
) -> Values:
    """The positions of the layers without a window, and the layers with one: `other_layers`.

    Args:
        types: The type of each layer, as in `layer_types`.
        thetas: Theta of the two kinds, where `rope_parameters` doesn't say.
        scales_both: Whether `rope_scaling`, which older files have, holds for both kinds and not for the first alone.
    """
    given, scaling = raw.get("rope_parameters") or {}, raw.get("rope_scaling") or {}

    def positions(kind: int, scaling: Raw) -> Values:
        rope = {"rope_theta": thetas[kind], **(given.get(LAYER_TYPES[kind]) or {}), **scaling}
        rope.pop("truncate", None)  # the reference looks for it beside the two kinds alone, so it is always true
        return read_rope({ORIGINAL: raw.get(ORIGINAL), "rope_parameters": rope}, values, head)

    own, other = positions(0, scaling), positions(1, scaling if scales_both else {})
    fields = {name.removeprefix("position."): value for name, value in other.items()}
    position = None if own == other else make(PositionConfig, {"kind": "rotary", **fields})
    return {**own, **layers_with_window(types, window, position=position)}


def write_ropes(config: ModelConfig) -> dict[str, Any]:
    """The field of config.json with the positions of both kinds of layers."""
    other = config.other_layers and config.other_layers.position
    configs = config, config if other is None else replace(config, position=other)
    ropes = (write_rope(each)["rope_parameters"] for each in configs)
    return {"rope_parameters": dict(zip(LAYER_TYPES, ropes, strict=True))}


def head_operations(config: ModelConfig, pairs: Pairs = "halves") -> Callable[..., Operation]:
    """The maker of operations on the heads of a model: `split_heads` with their width and the rows that turn."""
    head_dim = config.head_dim
    order = rotary_order(head_dim, int(head_dim * config.position.rotary_fraction), pairs)
    return partial(split_heads, head_dim, order=order if config.position.kind == "rotary" else None)


def rotary_rows(config: ModelConfig, pairs: Pairs = "halves") -> list[Row]:
    """The rows of queries and keys that have matrices of their own, and turn in other pairs on disk than here."""
    operation, attention = head_operations(config, pairs), config.attention
    heads = {"q_proj": ("query", attention.heads), "k_proj": ("key", attention.kv_heads or attention.heads)}
    their_block, our_block = "model.layers.{i}.self_attn.", "decoder.blocks.{i}.attention."
    return [
        line
        for theirs, (ours, count) in heads.items()
        for line in linear(their_block + theirs, our_block + ours, operation(count))
    ]
