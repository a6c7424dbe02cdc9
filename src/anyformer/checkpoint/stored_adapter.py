"""An adapter as a directory holds it, whoever's format that is in."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from anyformer.adapters.config import LoraConfig

Parts = Mapping[str, Tensor]
"""What there is of "a" [rank, inputs], "b" [outputs, rank] and "magnitude" [outputs] of a layer."""


@dataclass(frozen=True)
class StoredAdapter:
    """What was read; that it is complete and fits a model is checked when it is loaded."""

    config: LoraConfig
    layers: Mapping[str, Parts]
    """By the name of the layer in Hugging Face's class."""
    others: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])
    """Biases, and weights of modules that were trained whole, by Hugging Face's names."""
    base: str | None = None
    """The model that it was trained on."""
