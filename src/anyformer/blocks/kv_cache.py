"""The key-value cache: a decoder reads each token once, and each new token costs one step and not a whole pass.

The key of a sequence's token at position p is in slot p of its row, whatever padding its batch had, so a row is full up
to its length and empty behind it. Sequences of a batch may have different lengths: they can be padded, truncated one by
one, and enter and leave while others go on (`put`, `remove`).
"""

from copy import copy
from dataclasses import dataclass
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
    values: Float[Tensor, "batch kv_heads time head_dim"]


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


@dataclass
class _WriteSlots:
    """Where a layer writes the keys of the new tokens: into the same slots of all rows, or into some of each."""

    start: int = 0
    end: int = 0
    index: tuple[Tensor, Tensor] | None = None
    """Rows and slots of the new tokens, without padding."""
    layout: Layout = DENSE

    def set(self, start: int, end: int, index: tuple[Tensor, Tensor] | None = None, layout: Layout = DENSE) -> None:
        self.start, self.end, self.index, self.layout = start, end, index, layout


class LayerCache:
    """One layer's keys and values: of self-attention, and of cross-attention, which are computed once.

    Attributes:
        keys, values: [batch, kv_heads, capacity, head_dim]
        cross: those of each source once, [sources, kv_heads, source, head_dim].
        source_index: the source of each sequence, [batch]; None: each sequence has its own.
    """

    def __init__(
        self, keys: Float[Tensor, "rows kv_heads capacity head_dim"], values: Tensor, slots: _WriteSlots | None = None
    ) -> None:
        self._rows, self._cross = KeysValues(keys, values), None
        self._slots = slots or _WriteSlots()
        self.keys, self.values = keys, values
        self.cross: KeysValues | None = None
        self.source_index: Tensor | None = None
        self._expanded: KeysValues | None = None

    @property
    def encoder_kv(self) -> KeysValues | None:
        """Keys and values of each sequence's source, [batch, kv_heads, source, head_dim]."""
        if self.cross is None or self.source_index is None:
            return self.cross
        if self._expanded is None:
            self._expanded = KeysValues(*(part[self.source_index] for part in self.cross))
        return self._expanded

    def set_cross(self, cross: KeysValues, source_index: Int[Tensor, " batch"] | None = None) -> None:
        """Set the keys and values of cross-attention."""
        self.cross, self.source_index, self._expanded = cross, source_index, None

    def update(
        self, keys: Float[Tensor, "#batch kv_heads new head_dim"], values: Float[Tensor, "#batch kv_heads new head_dim"]
    ) -> KeysValues:
        """Write the new keys and values where the cache has made room for them, and return all of them.

        Where some of the new tokens are padding, they come with it or without.
        """
        slots = self._slots
        for cached, new in ((self.keys, keys), (self.values, values)):
            if slots.index is None:
                cached[:, :, slots.start : slots.end] = new
            else:
                rows, columns = slots.index
                # An indexed write doesn't convert, as one of a slice does: beside an adapter they can be float32.
                new = new.transpose(1, 2).to(cached.dtype)
                cached[rows, :, columns] = new if new.shape[:2] == rows.shape else slots.layout.gather(new)
        return KeysValues(self.keys[:, :, : slots.end], self.values[:, :, : slots.end])

    def select(self, rows: Int[Tensor, " kept"], length: int, *, sources: bool) -> None:
        """Keep these rows as far as they are filled: most of the cache is still empty, and copying it takes long."""

        def taken(old: Tensor) -> Tensor:
            new = old.new_empty((len(rows), *old.shape[1:]))
            torch.index_select(old[:, :, :length], 0, rows, out=new[:, :, :length])
            return new

        self._rows = KeysValues(taken(self.keys), taken(self.values))
        self.keys, self.values = self._rows
        if self.cross is not None and sources:
            self.set_cross(self.cross, rows if self.source_index is None else self.source_index[rows])

    def set_batch(self, batch: int) -> None:
        """Let the first `batch` rows of the cache be the batch."""
        self.keys, self.values = (cached[:batch] for cached in self._rows)
        self.source_index = self._expanded = None
        self.cross = None if self._cross is None else KeysValues(*(cached[:batch] for cached in self._cross))

    def clear(self, first: int, end: int, filled: Int[Tensor, " rows"]) -> None:
        """Write zeros into slots that no token has: 0 * NaN is NaN, even where the weight of a slot is 0."""
        slots = torch.arange(first, end, device=filled.device)
        empty = (slots[None] >= filled[:, None])[:, None, :, None]
        for cached in self._rows:
            cached[:, :, first:end].masked_fill_(empty, 0.0)

    def copy_row(self, row: int, length: int, other: "LayerCache", other_row: int) -> None:
        """Copy the first `length` slots of a row of another cache, and its source."""
        for mine, theirs in zip(self._rows, other._rows, strict=True):
            mine[row, :, :length] = theirs[other_row, :, :length]
        if other.encoder_kv is None:
            return
        rows, heads, _, head_dim = self._rows.keys.shape
        width = other.encoder_kv.keys.shape[2]
        if self._cross is None:
            self._cross = KeysValues(*(cached.new_zeros((rows, heads, 0, head_dim)) for cached in self._rows))
        if (missing := width - self._cross.keys.shape[2]) > 0:
            self._cross = KeysValues(*(F.pad(cached, (0, 0, 0, missing)) for cached in self._cross))
        for mine, theirs in zip(self._cross, other.encoder_kv, strict=True):
            mine[row, :, :width] = theirs[other_row]


class KeyValueCache:
    """The cache of a batch of sequences that grow together; pass it to the model with each new part of them.

    Args:
        layers: Decoder layers.
        batch: Texts.
        kv_heads: Key/value heads.
        capacity: Longest sequence in tokens; the memory for it is allocated at once.
        head_dim: Width of one head.
        device: Where the model is.
        dtype: The model's number format.

    Attributes:
        layers: what each layer remembers.
        tokens: ids of the tokens read, [batch, capacity].
        batch: sequences in it.
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
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        shape = (batch, kv_heads, capacity, head_dim)
        self._slots = _WriteSlots()

        def empty() -> Tensor:
            return torch.empty(shape, device=device, dtype=dtype)

        self.layers = [LayerCache(empty(), empty(), self._slots) for _ in range(layers)]
        self.capacity = capacity
        self.batch = batch
        self.length = 0
        self.source_mask: Bool[Tensor, "batch source"] | None = None
        self._rows = batch
        self._tokens = self.tokens = torch.zeros((batch, capacity), dtype=torch.long, device=device)
        self._device = device
        self._lengths: Tensor | None = None
        self._source_masks: Tensor | None = None
        self._finite = 0
        """Slots of every row that hold numbers."""

    @property
    def lengths(self) -> Int[Tensor, " batch"]:
        """The number of tokens of each sequence."""
        if self._lengths is None:
            return torch.full((self.batch,), self.length, device=self._device)
        return self._lengths

    def extend(self, tokens: Int[Tensor, "batch new"], mask: Bool[Tensor, "batch new"] | None = None) -> NewTokens:
        """Append tokens to each sequence, and set where each layer's `update` writes their keys and values.

        Args:
            tokens: Their ids.
            mask: False for those that are padding, anywhere; None: none is.

        Raises:
            ValueError: the cache is full.
        """
        new = tokens.shape[1]
        if mask is not None and bool(mask.all()):
            mask = None
        if self._lengths is None and mask is None:
            first, end = self.length, self.length + new
            self._require(end)
            self.tokens[:, first:end] = tokens
            self.length = end
            self._slots.set(first, end)
            positions = torch.arange(first, end, device=self._device)[None]
            return NewTokens(positions)
        before, layout = self.lengths, DENSE
        if mask is None:
            positions = before[:, None] + torch.arange(new, device=self._device)
            after = before + new
        else:
            layout = Layout.of(mask)
            positions = (before[:, None] + mask.cumsum(dim=1) - 1).clamp(min=0)
            after = before + mask.sum(dim=1)
        rows = torch.arange(self.batch, device=self._device)[:, None]
        slots = layout.gather(rows.expand_as(positions)), layout.gather(positions)
        longest = int(after.max())
        self._require(longest)
        self._clear(longest, before)
        self.tokens[slots] = layout.gather(tokens)
        self._set_lengths(after)
        self._slots.set(0, longest, slots, layout)
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

        Args:
            rows: Their numbers.
            sources: False: every row keeps its content or takes that of a row with the same source, such as another
                beam of the same search, so what was made of the sources stays where it is.
        """
        for layer in self.layers:
            layer.select(rows, self.length, sources=sources)
        self._tokens = self.tokens = self.tokens[rows]
        self._finite = min(self._finite, self.length)
        self._rows = self.batch = len(rows)
        if self._lengths is not None:
            self._set_lengths(self._lengths[rows])
        if self.source_mask is not None and sources:
            self.source_mask = self.source_mask[rows]

    def copy(self, rows: Int[Tensor, " kept"]) -> "KeyValueCache":
        """A cache of its own with copies of these rows, of a single stack."""
        other = copy(self)
        other._slots = _WriteSlots()
        other.layers = [LayerCache(layer.keys, layer.values, other._slots) for layer in self.layers]
        other.select(rows)
        return other

    def clear(self) -> None:
        """Forget all sequences. Others are brought in by `put`, up to the batch that the cache was made for."""
        self.batch, self.length, self._lengths = 0, 0, None
        self._set_batch()

    def put(self, row: int, other: "KeyValueCache", other_row: int = 0) -> None:
        """Let a sequence of another cache, with its source, replace this row, or come after the last one.

        Raises:
            ValueError: there is no such row, or the sequence is too long.
        """
        if not 0 <= row <= self.batch or row >= self._rows:
            raise ValueError(f"the cache has {self.batch} sequences and room for {self._rows}: there is no row {row}")
        length = int(other.lengths[other_row])
        self._require(length)
        for layer, theirs in zip(self.layers, other.layers, strict=True):
            layer.copy_row(row, length, theirs, other_row)
        self._tokens[row, :length] = other.tokens[other_row, :length]
        first = other.layers[0].encoder_kv
        if first is not None:
            width = first.keys.shape[2]
            masks = self._source_masks
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
        lengths: list[int] = self.lengths.tolist()
        if row != last:
            for layer in self.layers:
                layer.copy_row(row, lengths[last], layer, last)
            self._tokens[row] = self._tokens[last]
            if self._source_masks is not None:
                self._source_masks[row] = self._source_masks[last]
            lengths[row] = lengths[last]
        self._resize(lengths[:last])

    def _resize(self, lengths: list[int]) -> None:
        self.batch = len(lengths)
        self._set_lengths(torch.tensor(lengths, dtype=torch.long, device=self._device))
        self._set_batch()

    def _set_batch(self) -> None:
        for layer in self.layers:
            layer.set_batch(self.batch)
        self.tokens = self._tokens[: self.batch]
        self.source_mask = None if self._source_masks is None else self._source_masks[: self.batch]

    def _set_lengths(self, lengths: Tensor) -> None:
        known: list[int] = lengths.tolist()
        self.length = max(known, default=0)
        self._lengths = None if min(known, default=0) == self.length else lengths

    def _require(self, length: int) -> None:
        if length > self.capacity:
            raise ValueError(f"the cache holds {self.capacity} tokens, and {length} are needed")

    def _clear(self, end: int, filled: Tensor) -> None:
        """See to it that rows that end earlier hold numbers up to here."""
        if end <= self._finite:
            return
        until = min(self.capacity, -(-end // _CLEARED_SLOTS) * _CLEARED_SLOTS)
        every = torch.cat((filled, filled.new_zeros(self._rows - self.batch)))
        for layer in self.layers:
            layer.clear(self._finite, until, every)
        self._finite = until
