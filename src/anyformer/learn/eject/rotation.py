"""The angles of rotary positions, as the template writes them."""

import math
from collections.abc import Sequence
from typing import Any

from anyformer.config import ModelConfig
from anyformer.learn.eject.stacks import Group


def rotations(config: ModelConfig, groups: Sequence[Group]) -> list[dict[str, Any]]:
    """The functions that compute angles, one for each attention."""
    if config.position.kind != "rotary":
        return []
    return [
        {"name": f"{group.prefix.lower()}angles", "head_dim": f"{group.prefix}HEAD_DIM", "prefix": group.prefix}
        for group in groups
    ]


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
    """YaRN's factor on cosines and sines."""
    scaling = config.position.scaling
    if scaling is None or scaling.kind != "yarn":
        return 1.0
    if scaling.attention_factor is not None:
        return scaling.attention_factor
    return 0.1 * math.log(scaling.factor) + 1.0 if scaling.factor > 1 else 1.0
