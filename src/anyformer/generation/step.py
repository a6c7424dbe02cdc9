"""One token more of every text: what a search or a stream does again and again."""

from collections.abc import Callable

from jaxtyping import Float, Int
from torch import Tensor

from anyformer.blocks.cache import KeyValueCache
from anyformer.generation.writing import next_scores
from anyformer.model import Transformer

Step = Callable[[Int[Tensor, "batch 1"], KeyValueCache], Float[Tensor, "batch vocab"]]
"""Reads a token of each text into the cache and returns the scores of the next, in float32."""


def step_of(model: Transformer) -> Step:
    """The way to take such steps with this model."""

    def step(tokens: Tensor, cache: KeyValueCache) -> Tensor:
        return next_scores(model(tokens, cache=cache, last_only=True))

    return step
