"""The key-value cache: a decoder reads each token once, and each new token costs one step and not a whole pass.

The key of a sequence's token at position p is in slot p of its row, whatever padding its batch had. Sequences may have
different lengths, be truncated one by one, and enter and leave while others go on (`put`, `remove`).
"""

from collections.abc import Callable
from copy import copy
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from anyformer.kernels import DENSE, Layout

_CLEARED_SLOTS = 64
"""Slots that are cleared at a time."""


class KeysValues(NamedTuple):
    """Keys and values of one attention layer."""

    keys: Float[Tensor, "batch kv_heads time head_dim"]
    values: Float[Tensor, "batch kv_heads time value_dim"]

    def map(self, function: Callable[[Tensor], Tensor]) -> "KeysValues":
        """The keys and values after a function of each."""
        return KeysValues(function(self.keys), function(self.values))


class NewTokens(NamedTuple):
    """Positions of new tokens in their sequences."""

    positions: Int[Tensor, "#batch new"]
    """The position of each; of padding that of the token before it, or 0."""
    padding_mask: Bool[Tensor, "batch longest"] | None = None
    """True for the slots that each sequence has filled; None: all sequences have filled as many."""
    layout: Layout = DENSE
    """The layout of the new tokens without padding."""

    @property
    def lengths(self) -> Int[Tensor, "#batch #new"]:
        """Tokens of each sequence, the new ones included."""
        if self.padding_mask is None:
            return self.positions[:, -1:] + 1
        return self.padding_mask.sum(dim=1, keepdim=True)


class WriteSlots(NamedTuple):
    """Slots of the keys of new tokens: the same in all rows, or those at some indices."""

    start: int = 0
    end: int = 0
    indices: tuple[Tensor, Tensor] | None = None
    """Rows and slots of the new tokens, without padding."""
    layout: Layout = DENSE


@dataclass(slots=True)
class _Contents:
    """The memory of a cache, and the part of it that is in use."""

    keys_values: KeysValues
    """Keys and values of all layers, [layers, rows, kv_heads, capacity, head_dim]: one operation copies a row."""
    batch: int
    slots: WriteSlots


class LayerCache:
    """One layer's keys and values: of self-attention, and of cross-attention, which are computed once.

    Attributes:
        cross: those of each source once, [sources, kv_heads, source, head_dim].
        source_index: the source of each sequence, [batch]; None: each sequence has its own.
    """

    def __init__(self, contents: _Contents, number: int) -> None:
        self._contents, self._number = contents, number
        self.cross: KeysValues | None = None
        self.source_index: Tensor | None = None
        self._copied: KeysValues | None = None
        self._expanded: KeysValues | None = None

    @property
    def keys(self) -> Float[Tensor, "batch kv_heads capacity head_dim"]:
        """Keys of each sequence."""
        return self._view(self._contents.keys_values.keys)

    @property
    def values(self) -> Float[Tensor, "batch kv_heads capacity value_dim"]:
        """Values of each sequence."""
        return self._view(self._contents.keys_values.values)

    def _view(self, cached: Tensor) -> Tensor:
        """This layer's part, which counts its changes by itself: those of other layers don't spoil a backward pass."""
        return cached[self._number, : self._contents.batch].data

    @property
    def encoder_kv(self) -> KeysValues | None:
        """Keys and values of each sequence's source, [batch, kv_heads, source, head_dim]."""
        if self.cross is None or self.source_index is None:
            return self.cross
        if self._expanded is None:
            source_index = self.source_index
            self._expanded = self.cross.map(lambda part: part[source_index])
        return self._expanded

    def set_cross(self, cross: KeysValues | None, source_index: Int[Tensor, " batch"] | None = None) -> None:
        """Set the keys and values of cross-attention."""
        self.cross, self.source_index, self._expanded = cross, source_index, None

    def update(
        self,
        keys: Float[Tensor, "#batch kv_heads new head_dim"],
        values: Float[Tensor, "#batch kv_heads new value_dim"],
    ) -> KeysValues:
        """Write the new keys and values where the cache has made room for them, and return all of them.

        Where some of the new tokens are padding, they come with it or without.
        """
        start, end, indices, layout = self._contents.slots
        kept = KeysValues(self.keys, self.values)
        for cached, new in zip(kept, (keys, values), strict=True):
            if indices is None:
                cached[:, :, start:end] = new
            else:
                rows, columns = indices
                # An indexed write doesn't convert, as one of a slice does: beside an adapter they can be float32.
                new = new.transpose(1, 2).to(cached.dtype)
                cached[rows, :, columns] = new if new.shape[:2] == rows.shape else layout.gather(new)
        return kept.map(lambda cached: cached[:, :, :end])

    def select_sources(self, rows: Int[Tensor, " kept"]) -> None:
        """Keep the sources of these rows."""
        if self.cross is not None:
            self.set_cross(self.cross, rows if self.source_index is None else self.source_index[rows])

    def keep_sources(self, batch: int) -> None:
        """Let the first ones that were copied be the sources of the batch."""
        self.set_cross(self._copied and self._copied.map(lambda cached: cached[:batch]))

    def copy_source(self, row: int, rows: int, theirs: KeysValues, other_row: int) -> None:
        """Copy the source of a row of another cache into one of so many rows."""
        width = theirs.keys.shape[2]
        cross = self._copied or theirs.map(lambda cached: cached[:1, :, :0].expand(rows, -1, -1, -1))
        missing = max(0, width - cross.keys.shape[2])
        self._copied = cross.map(lambda cached: F.pad(cached, (0, 0, 0, missing))) if missing else cross
        for mine, other in zip(self._copied, theirs, strict=True):
            mine[row, :, :width] = other[other_row]


class KeyValueCache:
    """The cache of a batch of sequences that grow together; pass it to the model with each new part of them.

    Args:
        capacity: Longest sequence in tokens; the memory for it is allocated at once.
        head_dim: Width of each key and value, or of keys alone where `value_dim` is given (0 for latents).

    Attributes:
        tokens: ids of the tokens read, [batch, capacity].
        length: tokens of the longest of them.
        source_mask: which tokens of each source are real, [batch, source]; None: all.
    """

    def __init__(
        self,
        *,
        layers: int,
        batch: int,
        kv_heads: int,
        capacity: int,
        head_dim: int,
        value_dim: int | None = None,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        empty = partial(torch.empty, device=device, dtype=dtype)
        shapes = [
            (batch, kv_heads, capacity, width) for width in (head_dim, head_dim if value_dim is None else value_dim)
        ]
        self._contents = _Contents(KeysValues(*(empty((layers, *shape)) for shape in shapes)), batch, WriteSlots())
        self.layers = [LayerCache(self._contents, number) for number in range(layers)]
        self.capacity, self.length = capacity, 0
        self._rows = batch
        self.source_mask: Bool[Tensor, "batch source"] | None = None
        self._tokens = self.tokens = torch.zeros((batch, capacity), dtype=torch.long, device=device)
        self._device = device
        self._lengths: Tensor | None = None
        self._source_masks: Tensor | None = None
        self._finite = 0
        """Slots of every row that hold numbers."""

    @property
    def batch(self) -> int:
        """Sequences in it."""
        return self._contents.batch

    @property
    def keys_values(self) -> KeysValues:
        """The memory of all layers, [layers, rows, kv_heads, capacity, head_dim]."""
        return self._contents.keys_values

    @property
    def lengths(self) -> Int[Tensor, " batch"]:
        """The number of tokens of each sequence."""
        if self._lengths is None:
            return torch.full((self.batch,), self.length, device=self._device)
        return self._lengths

    def extend(self, tokens: Int[Tensor, "batch new"], mask: Bool[Tensor, "batch new"] | None = None) -> NewTokens:
        """Append tokens to each sequence, and set where each layer's `update` writes their keys and values.

        The mask is False for padding, anywhere. Raises ValueError if the cache is full.
        """
        new = tokens.shape[1]
        if mask is not None and bool(mask.all()):
            mask = None
        if self._lengths is None and mask is None:
            first, end = self.length, self.length + new
            self._require(end)
            self.tokens[:, first:end] = tokens
            self.length = end
            self._contents.slots = WriteSlots(first, end)
            return NewTokens(torch.arange(first, end, device=self._device)[None])
        before, layout = self.lengths, DENSE
        if mask is None:
            positions = before[:, None] + torch.arange(new, device=self._device)
            after = before + new
        else:
            layout = Layout.of(mask)
            positions = (before[:, None] + mask.cumsum(dim=1, dtype=torch.long) - 1).clamp(min=0)
            after = before + mask.sum(dim=1)
        rows = torch.arange(self.batch, device=self._device)[:, None]
        slots = layout.gather(rows.expand_as(positions)), layout.gather(positions)
        longest = int(after.max())
        self._require(longest)
        self._clear(longest, before)
        self.tokens[slots] = layout.gather(tokens)
        self._set_lengths(after)
        self._contents.slots = WriteSlots(0, longest, slots, layout)
        real = torch.arange(longest, device=self._device)[None] < after[:, None]
        return NewTokens(positions, real, layout)

    def truncate(self, length: int | Int[Tensor, " batch"]) -> None:
        """Forget all tokens but the first `length` (of each sequence its own)."""
        if isinstance(length, int) and self._lengths is None:
            self.length = min(self.length, length)
        else:
            self._set_lengths(self.lengths.clamp(max=length))

    def select(self, rows: Int[Tensor, " kept"], *, sources: bool = True) -> None:
        """Keep these rows of the batch, in this order (a row may be taken more than once).

        Without `sources`, every row keeps its content or takes that of a row with the same source, such as another beam
        of the same search, so what was made of the sources stays where it is.
        """
        self._select(rows, sources=sources, in_place=True)

    def copy(self, rows: Int[Tensor, " kept"]) -> "KeyValueCache":
        """A cache of its own with copies of these rows, of a single stack."""
        other = copy(self)
        other._contents = copy(self._contents)
        other.layers = [LayerCache(other._contents, number) for number in range(len(self.layers))]
        other._select(rows, sources=True, in_place=False)
        return other

    def clear(self) -> None:
        """Forget all sequences. Others are brought in by `put`, up to the batch that the cache was made for."""
        self.length, self._lengths = 0, None
        self._set_batch(0)

    def put(self, row: int, other: "KeyValueCache", other_row: int = 0, length: int | None = None) -> None:
        """Let a sequence of another cache, with its source, replace this row, or come after the last one.

        `length` is that of its beginning; None: all of it is copied. Raises ValueError if there is no such row, or the
        sequence is too long.
        """
        if not 0 <= row <= self.batch or row >= self._rows:
            raise ValueError(f"the cache has {self.batch} sequences and room for {self._rows}: there is no row {row}")
        length = int(other.lengths[other_row]) if length is None else length
        self._require(length)
        for mine, theirs in zip(self.keys_values, other.keys_values, strict=True):
            mine[:, row, :, :length] = theirs[:, other_row, :, :length]
        self._tokens[row, :length] = other.tokens[other_row, :length]
        if (encoder_kv := other.layers[0].encoder_kv) is not None:
            for layer, of_other in zip(self.layers, other.layers, strict=True):
                assert of_other.encoder_kv is not None
                layer.copy_source(row, self._rows, of_other.encoder_kv, other_row)
            width, masks = encoder_kv.keys.shape[2], self._source_masks
            if masks is None:
                masks = torch.zeros((self._rows, 0), dtype=torch.bool, device=self._device)
            masks = self._source_masks = F.pad(masks, (0, max(0, width - masks.shape[1])))
            masks[row] = False
            masks[row, :width] = True if other.source_mask is None else other.source_mask[other_row]
        lengths: list[int] = [*self.lengths.tolist(), 0][: max(self.batch, row + 1)]
        lengths[row] = length
        self._resize(lengths)

    def remove(self, row: int) -> None:
        """Forget this row's sequence; the last row takes its index."""
        last = self.batch - 1
        if row != last:
            self.put(row, self, last)
        self._resize(self.lengths.tolist()[:last])

    def _select(self, rows: Tensor, *, sources: bool, in_place: bool) -> None:
        moved = (rows != torch.arange(len(rows), device=rows.device)).nonzero().flatten() if in_place else None
        contents = self._contents
        contents.keys_values = contents.keys_values.map(lambda cached: self._selected(cached, rows, moved))
        if sources:
            for layer in self.layers:
                layer.select_sources(rows)
        self._tokens = self.tokens = self.tokens[rows]
        self._finite = min(self._finite, self.length)
        self._rows = contents.batch = len(rows)
        if self._lengths is not None:
            self._set_lengths(self._lengths[rows])
        if self.source_mask is not None and sources:
            self.source_mask = self.source_mask[rows]

    def _selected(self, cached: Tensor, rows: Tensor, moved: Tensor | None) -> Tensor:
        """These rows of all layers as far as they are filled: most is still empty, and copying it takes long.

        With `moved`, the positions of those that were another row, they are in the memory of the old ones, if there is
        enough of it. Most beams go on by themselves.
        """
        old, count = cached[:, : self.batch, :, : self.length], len(rows)
        if moved is not None and count <= self.batch:
            for layer in old:
                layer[:count].index_copy_(0, moved, layer.index_select(0, rows[moved]))
            return cached[:, :count] if count < cached.shape[1] else cached
        new = cached.new_empty((len(cached), count, *cached.shape[2:]))
        for before, after in zip(old, new[:, :, :, : self.length], strict=True):
            after.copy_(before.index_select(0, rows))  # `out` in a part of a tensor takes twice as long
        return new

    def _resize(self, lengths: list[int]) -> None:
        self._set_lengths(torch.tensor(lengths, dtype=torch.long, device=self._device))
        self._set_batch(len(lengths))

    def _set_batch(self, batch: int) -> None:
        self._contents.batch = batch
        for layer in self.layers:
            layer.keep_sources(batch)
        self.tokens = self._tokens[:batch]
        self.source_mask = None if self._source_masks is None else self._source_masks[:batch]

    def _set_lengths(self, lengths: Tensor) -> None:
        counts: list[int] = lengths.tolist()
        self.length = max(counts, default=0)
        self._lengths = None if min(counts, default=0) == self.length else lengths

    def _require(self, length: int) -> None:
        if length > self.capacity:
            raise ValueError(f"the cache holds {self.capacity} tokens, and {length} are needed")

    def _clear(self, end: int, filled: Tensor) -> None:
        """Write zeros into slots up to here that no token has: 0 * NaN is NaN, even where the weight of a slot is 0."""
        if end <= self._finite:
            return
        first, self._finite = self._finite, min(self.capacity, -(-end // _CLEARED_SLOTS) * _CLEARED_SLOTS)
        filled = torch.cat((filled, filled.new_zeros(self._rows - self.batch)))
        empty = torch.arange(first, self._finite, device=filled.device) >= filled[:, None]
        for cached in self.keys_values:
            cached[:, :, :, first : self._finite].masked_fill_(empty[:, None, :, None], 0.0)
