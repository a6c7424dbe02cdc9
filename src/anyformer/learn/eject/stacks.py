"""The stacks of a model, and which of them share a part: its class, and its constants."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from anyformer.config import AttentionConfig, FeedForwardConfig, ModelConfig


@dataclass(frozen=True)
class Stack:
    """One stack, and what its blocks are made of."""

    name: str
    attention: AttentionConfig
    feed_forward: FeedForwardConfig
    layers: int
    is_decoder: bool
    has_mask: bool
    """Whether its attention is told by a mask what a token sees."""

    @property
    def window(self) -> int | None:
        """That of some layer; None: no layer has one."""
        return self.attention.window if self.attention.window_from < self.layers else None

    @property
    def window_from(self) -> int:
        """The first layer that has the window, where others have none; 0: all or none."""
        return 0 if self.window is None else self.attention.window_from


def stacks_of(config: ModelConfig) -> list[Stack]:
    """The encoder and the decoder, as far as a model has them."""
    first = (config.attention, config.feed_forward)
    second = (config.decoder_attention or first[0], config.decoder_feed_forward or first[1])
    relative = config.position.kind == "relative"

    def stack(name: str, attention: AttentionConfig, feed_forward: FeedForwardConfig, layers: int) -> Stack:
        has_window = attention.window is not None and attention.window_from < layers
        return Stack(name, attention, feed_forward, layers, name == "Decoder", relative or has_window)

    found = [stack("Encoder", *first, config.encoder_layers)] if config.encoder_layers else []
    if config.decoder_layers:
        found.append(stack("Decoder", *(second if found else first), config.decoder_layers))
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
        """What constants begin with."""
        return f"{self.name.upper()}_" if self.name else ""


def alike(stacks: Sequence[Stack], part: Callable[[Stack], object]) -> list[Group]:
    """Both stacks together where the part is the same in them, else each by itself."""
    if len({part(stack) for stack in stacks}) == 1:
        return [Group(tuple(stacks), "")]
    return [Group((stack,), stack.name) for stack in stacks]
