"""An adapter as a directory holds it, whoever's format that is in."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from anyformer.adapters.config import LoraConfig

Parts = Mapping[str, Tensor]
"""Tensors "a" [rank, inputs], "b" [outputs, rank] and "magnitude" [outputs] of a layer, as far as they are there."""


@dataclass(frozen=True)
class StoredAdapter:
    """An adapter as it was read; loading checks that it is complete and fits the model."""

    config: LoraConfig
    layers: Mapping[str, Parts]
    """By the name of the layer in Hugging Face's class."""
    others: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])
    """Biases, and weights of modules that were trained whole, by Hugging Face's names."""
    base: str | None = None
    """The model that it was trained on."""
