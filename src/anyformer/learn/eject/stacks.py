"""The stacks of a model, and their attention, feed-forward and positions.

Stacks share a part where it is the same in both: its class, and its constants.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from anyformer.blocks.position import frequencies
from anyformer.config import AttentionConfig, FeedForwardConfig, ModelConfig, OtherLayers, PositionConfig


@dataclass(frozen=True)
class Stack:
    """One stack of a model, and what its blocks are made of."""

    config: ModelConfig
    name: str
    attention: AttentionConfig
    feed_forward: FeedForwardConfig
    layers: int
    others: OtherLayers | None

    @property
    def is_decoder(self) -> bool:
        """Whether tokens see only those before them."""
        return self.name == "Decoder"

    @property
    def layers_name(self) -> str:
        """The constant of its number of layers."""
        return f"{self.name.upper()}_LAYERS" if self.config.is_encoder_decoder else "LAYERS"

    @property
    def has_other_mask(self) -> bool:
        """Whether some layers have another window."""
        return self.others is not None and self.others.window != self.attention.window

    @property
    def has_other_network(self) -> bool:
        """Whether some layers have another feed-forward."""
        return self.others is not None and self.others.feed_forward not in (None, self.feed_forward)

    @property
    def pattern(self) -> str:
        """The layers that differ, an ``o`` for each, repeated; "": none."""
        others = self.others
        if others is None or not (self.has_other_mask or others.position or self.has_other_network):
            return ""
        return "".join(".o"[layer in others] for layer in range(self.layers)) if others.first else others.then

    @property
    def has_mask(self) -> bool:
        """Whether its attention is told by a mask what a token sees."""
        is_narrow = self.attention.window is not None or self.has_other_mask
        is_explicit = self.attention.softcap is not None or self.attention.sinks
        return self.config.position.has_buckets or is_narrow or is_explicit


@dataclass(frozen=True)
class Group:
    """Stacks that share a part.

    Attributes:
        stacks: One or both.
        name: What the class begins with: that of the stack, or nothing where there is no other class.
        shares_head_dim: Another group has heads of the same size, though its attention is another.
    """

    stacks: tuple[Stack, ...]
    name: str
    shares_head_dim: bool = False

    @property
    def prefix(self) -> str:
        """Prefix of constants."""
        return f"{self.name.upper()}_" if self.name else ""

    @property
    def head_prefix(self) -> str:
        """Prefix of the constants of the size of heads, and of their rotation."""
        return "" if self.shares_head_dim else self.prefix

    @property
    def attention(self) -> AttentionConfig:
        """The attention of the first stack, which is that of all where they are grouped by it."""
        return self.stacks[0].attention

    @property
    def feed_forward(self) -> FeedForwardConfig:
        """The feed-forward of the first stack, which is that of all where they are grouped by it."""
        return self.stacks[0].feed_forward

    @property
    def head_dim(self) -> int:
        """Numbers of a head."""
        return self.attention.head_dim or self.stacks[0].config.d_model // self.attention.heads

    @property
    def turned_dim(self) -> int:
        """Numbers of a head that positions are for."""
        return self.head_dim if self.attention.latent is None else self.attention.latent.rotary_dim


def stacks_of(config: ModelConfig) -> list[Stack]:
    """The encoder and the decoder, as far as a model has them."""
    others = config.other_layers
    if others is not None and not rotates(config):
        others = replace(others, position=None)  # without any angles, as the model's own
    own = config.decoder_attention or config.attention, config.decoder_feed_forward or config.feed_forward
    encoder = Stack(config, "Encoder", config.attention, config.feed_forward, config.encoder_layers, others)
    decoder = Stack(config, "Decoder", *own, config.decoder_layers, others)
    return [stack for stack in (encoder, decoder) if stack.layers]


def alike(stacks: Sequence[Stack], part: Callable[[Stack], object]) -> list[Group]:
    """Both stacks together where the part is the same in them, else each by itself."""
    if len({part(stack) for stack in stacks}) == 1:
        return [Group(tuple(stacks), "")]
    return [Group((stack,), stack.name) for stack in stacks]


def attention_groups(stacks: Sequence[Stack]) -> list[Group]:
    """The attentions of the stacks."""
    groups = alike(stacks, lambda stack: stack.attention)
    sizes = {(group.attention.latent is None, group.head_dim, group.turned_dim) for group in groups}
    return [replace(group, shares_head_dim=True) for group in groups] if len(sizes) == 1 else groups


def distinct_layers(config: ModelConfig) -> int | None:
    """The number of blocks that more layers share; None: each layer has one."""
    distinct = config.distinct_layers
    return distinct if distinct is not None and distinct < config.encoder_layers else None


def reads_tokens(config: ModelConfig) -> bool:
    """Whether a stack needs the ids of its tokens, and not only their vectors."""
    return config.position.skip_padding or config.embedding.ngrams > 1


def positions_of(config: ModelConfig) -> dict[str, PositionConfig]:
    """The positions of a model by the prefix of their constants: of most layers, and of others that have their own."""
    others = config.other_layers
    own = {} if others is None or others.position is None else {"OTHER_": others.position}
    return {"": config.position, **own}


def rotates(config: ModelConfig) -> bool:
    """Whether some layers have rotary positions."""
    return any(position.kind == "rotary" for position in positions_of(config).values())


def is_partial(position: PositionConfig) -> bool:
    """Whether only a part of each head is rotated."""
    return position.kind == "rotary" and position.rotary_fraction != 1.0


def sharpness(position: PositionConfig, max_length: int) -> float:
    """YaRN's and LongRoPE's factor on cosines and sines."""
    scaling = position.scaling
    if position.kind != "rotary" or scaling is None or scaling.kind not in ("yarn", "longrope"):
        return 1.0
    length, pairs = torch.zeros(1, 1, dtype=torch.long), len(scaling.short_factor) or 32
    return frequencies(position, 2 * pairs, max_length, length)[1]
