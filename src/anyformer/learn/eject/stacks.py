"""The stacks of a model, and which of them share a part: its class, and its constants."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from anyformer.config import AttentionConfig, FeedForwardConfig, ModelConfig


@dataclass(frozen=True)
class Stack:
    """One stack, and what its blocks are made of."""

    name: str
    attention: AttentionConfig
    feed_forward: FeedForwardConfig
    layers: int
    is_decoder: bool
    has_relative_positions: bool

    @property
    def window(self) -> int | None:
        """Window of the layers that have one; None: none has."""
        return self.attention.window if self.attention.window_from < self.layers else None

    @property
    def window_from(self) -> int:
        """The first layer that has the window, where others have none; 0: all or none."""
        return 0 if self.window is None else self.attention.window_from

    @property
    def has_mask(self) -> bool:
        """Whether its attention is told by a mask what a token sees."""
        return self.has_relative_positions or self.window is not None


def stacks_of(config: ModelConfig) -> list[Stack]:
    """The encoder and the decoder, as far as a model has them."""
    first = (config.attention, config.feed_forward)
    second = (config.decoder_attention or first[0], config.decoder_feed_forward or first[1])
    relative = config.position.kind == "relative"
    found: list[Stack] = []
    if config.encoder_layers:
        found.append(Stack("Encoder", *first, config.encoder_layers, is_decoder=False, has_relative_positions=relative))
    if config.decoder_layers:
        parts = second if config.encoder_layers else first
        found.append(Stack("Decoder", *parts, config.decoder_layers, is_decoder=True, has_relative_positions=relative))
    return found


@dataclass(frozen=True)
class Group:
    """Stacks that share a part: its class, and its constants.

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


def alike(stacks: Sequence[Stack], part: Callable[[Stack], object]) -> list[Group]:
    """Both stacks together where the part is the same in them, else each by itself."""
    if len({part(stack) for stack in stacks}) == 1:
        return [Group(tuple(stacks), "")]
    return [Group((stack,), stack.name) for stack in stacks]


def layers_name(stack: Stack, both: bool) -> str:
    """The constant of a stack's number of layers, alone or where there are both."""
    return f"{stack.name.upper()}_LAYERS" if both else "LAYERS"


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
