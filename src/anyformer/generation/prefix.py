"""Prefix caching: of a text that begins as the last one did, only the rest is read."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from anyformer.blocks.kv_cache import KeyValueCache
from anyformer.generation.inference import device_of
from anyformer.generation.reading import first_scores
from anyformer.generation.step import decoder_step
from anyformer.model import Transformer

_SMALLEST = 1024


class PrefixCache:
    """What a decoder-only model remembers of the latest text that it has read.

    Its memory doubles when the text outgrows it.
    """

    def __init__(self, model: Transformer) -> None:
        self._model, self._step = model, decoder_step(model)
        self._ids: list[int] = []
        self._cache: KeyValueCache | None = None

    def scores(self, ids: Sequence[int]) -> Float[Tensor, "1 vocab"]:
        """The scores of the token after a text, in float32.

        Args:
            ids: The whole text, at least one token. As many of them as the latest text began with are not read again.

        Raises:
            UserError: the model answers with NaN.
        """
        # The last one is always read: its scores are not kept.
        known = min(common_start(self._ids, ids), len(ids) - 1)
        with torch.inference_mode():
            cache = self._reserve(len(ids))
            # An interrupted reading may have left the layers with different lengths.
            cache.truncate(known)
            del self._ids[known:]
            rest = torch.tensor([ids[known:]], device=device_of(self._model))
            scores = first_scores(self._step(rest, cache, last_only=True))
        self._ids.extend(ids[known:])
        return scores

    def _reserve(self, length: int) -> KeyValueCache:
        old = self._cache
        if old is not None and length <= old.capacity:
            return old
        capacity = max(length, _SMALLEST if old is None else 2 * old.capacity)
        new = self._model.make_cache(1, capacity)
        if old is not None:
            old.truncate(len(self._ids))
            new.put(0, old)
        self._cache = new
        return new


def common_start(first: Sequence[int], second: Sequence[int]) -> int:
    """How many ids two texts have in common at their beginnings."""
    if second[: len(first)] == first:
        return len(first)  # the usual case, and quicker so
    pairs = enumerate(zip(first, second, strict=False))
    return next((place for place, (one, other) in pairs if one != other), len(second))
