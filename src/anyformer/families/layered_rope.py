"""Rotary positions of two kinds: those of layers that see the whole text, and those of layers with a window."""

from dataclasses import replace
from typing import Any

from anyformer.config import HeadKind, ModelConfig, PositionConfig
from anyformer.families.base import Raw, Values
from anyformer.families.llama import LAYER_TYPES, ORIGINAL, layers_with_window, read_rope, write_rope
from anyformer.schema import make


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
