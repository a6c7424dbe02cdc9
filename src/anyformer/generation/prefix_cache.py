"""Prefix caching: of a text that begins as the last one did, only the rest is read."""

from collections.abc import Sequence

from jaxtyping import Float, Int
from torch import Tensor

from anyformer.blocks.kv_cache import KeyValueCache
from anyformer.generation.prefill import Decoder
from anyformer.generation.prompt import Prompt
from anyformer.generation.step import decoder_step
from anyformer.model import Transformer

_SMALLEST = 1024


class PrefixCache(Decoder):
    """Keys and values of the latest text that a decoder-only model has read.

    The cache doubles when the text outgrows it.
    """

    def __init__(self, model: Transformer) -> None:
        self.model = model
        self._step = decoder_step(model)
        self._ids: list[int] = []
        self._cache: KeyValueCache | None = None

    def prefill(self, prompt: Prompt) -> Float[Tensor, "1 vocab"]:
        """Read one prompt but for what the latest text began with, and return the logits of the first new token."""
        ids: list[int] = prompt.ids[0].tolist()
        # The last token is always read: its logits are not kept.
        known = min(common_prefix(self._ids, ids), len(ids) - 1)
        return self._read(known, prompt.ids[:, known:])[:, -1]

    def step(self, ids: Int[Tensor, "1 length"], guesses: Sequence[int] = ()) -> Float[Tensor, "1 1 vocab"]:
        """Read the last token of the text."""
        return self._read(ids.shape[1] - 1, ids[:, -1:])

    def _read(self, known: int, ids: Int[Tensor, "1 new"]) -> Float[Tensor, "1 1 vocab"]:
        """Read these tokens behind the first `known`."""
        cache = self._reserve(known + ids.shape[1])
        # An interrupted reading may have left the layers with different lengths.
        cache.truncate(known)
        del self._ids[known:]
        logits = self._step(ids, cache, last_only=True)
        self._ids += ids[0].tolist()
        return logits

    def _reserve(self, length: int) -> KeyValueCache:
        old = self._cache
        if old is not None and length <= old.capacity:
            return old
        capacity = max(length, _SMALLEST if old is None else 2 * old.capacity)
        new = self.model.make_cache(1, capacity)
        if old is not None:
            old.truncate(len(self._ids))
            new.put(0, old)
        self._cache = new
        return new


def common_prefix(first: Sequence[int], second: Sequence[int]) -> int:
    """How many ids two texts have in common at their beginnings."""
    if second[: len(first)] == first:
        return len(first)  # the usual case, and quicker so
    pairs = enumerate(zip(first, second, strict=False))
    return next((place for place, (one, other) in pairs if one != other), len(second))
