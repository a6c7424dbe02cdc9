"""Keys and values of the tokens read so far, so that each new token costs one step and not a whole pass."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


class KeysValues(NamedTuple):
    """What one attention layer looks at."""

    keys: Float[Tensor, "batch kv_heads time head_dim"]
    values: Float[Tensor, "batch kv_heads time head_dim"]


class LayerCache:
    """One layer's keys and values: its own, and those that its cross-attention made of the source once."""

    def __init__(self, keys: Float[Tensor, "batch kv_heads capacity head_dim"], values: Tensor) -> None:
        self.keys = keys
        self.values = values
        self.length = 0
        self.source: KeysValues | None = None

    def append(
        self, keys: Float[Tensor, "batch kv_heads new head_dim"], values: Float[Tensor, "batch kv_heads new head_dim"]
    ) -> KeysValues:
        """Write the new keys and values behind the old, and return all of them."""
        end = self.length + keys.shape[2]
        self.keys[:, :, self.length : end] = keys
        self.values[:, :, self.length : end] = values
        self.length = end
        return KeysValues(self.keys[:, :, :end], self.values[:, :, :end])

    def select(self, rows: Int[Tensor, " kept"]) -> None:
        """Keep these rows, as far as they are filled: most of the memory is still empty, and copying it takes long."""
        self.keys, self.values = self._taken(self.keys, rows), self._taken(self.values, rows)

    def _taken(self, old: Tensor, rows: Tensor) -> Tensor:
        new = old.new_empty((len(rows), *old.shape[1:]))
        new[:, :, : self.length] = old[:, :, : self.length][rows]
        return new


class KeyValueCache:
    """The memory of a batch of texts that grow together; pass it to the model with each new piece of them.

    Args:
        layers: Decoder layers.
        batch: Texts.
        kv_heads: Key/value heads.
        capacity: Longest text in tokens; the memory for it is reserved at once.
        head_dim: Width of one head.
        device: Where the model is.
        dtype: The model's number format.
    """

    def __init__(
        self,
        *,
        layers: int,
        batch: int,
        kv_heads: int,
        capacity: int,
        head_dim: int,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        shape = (batch, kv_heads, capacity, head_dim)
        self.layers = [
            LayerCache(torch.empty(shape, device=device, dtype=dtype), torch.empty(shape, device=device, dtype=dtype))
            for _ in range(layers)
        ]
        self.capacity = capacity
        self.length = 0
        """Tokens read so far, padding included."""
        self.source_mask: Bool[Tensor, "batch source"] | None = None
        self._real = torch.ones((batch, capacity), dtype=torch.bool, device=device)
        self._ragged = False

    def extend(self, new: int, mask: Bool[Tensor, "batch new"] | None) -> Bool[Tensor, "batch all"] | None:
        """Make room for `new` tokens; returns which of all tokens are real, or None while none is padding.

        Raises:
            ValueError: the cache is full.
        """
        end = self.length + new
        if end > self.capacity:
            raise ValueError(f"the cache holds {self.capacity} tokens, and {end} are needed")
        if mask is not None:
            self._real[:, self.length : end] = mask
            self._ragged = self._ragged or not bool(mask.all())
        self.length = end
        return self._real[:, :end] if self._ragged else None

    def truncate(self, length: int) -> None:
        """Forget all tokens but the first `length`, so that the text can go on otherwise from there."""
        for layer in self.layers:
            layer.length = length
        self._real[:, length:] = True
        self.length = length

    def select(self, rows: Int[Tensor, " kept"], *, sources: bool = True) -> None:
        """Keep these rows of the batch, in this order (a row may be taken more than once).

        Args:
            rows: Their numbers.
            sources: False: every row keeps its place or takes that of a row with the same source, such as another
                beam of the same search, so what was made of the sources stays where it is.
        """
        for layer in self.layers:
            layer.select(rows)
            if layer.source is not None and sources:
                layer.source = KeysValues(layer.source.keys[rows], layer.source.values[rows])
        self._real = self._real[rows]
        if self.source_mask is not None and sources:
            self.source_mask = self.source_mask[rows]
