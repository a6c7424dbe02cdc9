"""Keys and values of the tokens read so far, so that each new token costs one step and not a whole pass.

The key of a text's token at place p stands in cell p of its row, whatever padding its batch had, so a row is full up to
its end and empty behind it. Texts of a batch may have different ends: they can be padded, cut off one by one
(`truncate`), and enter and leave while others go on (`put`, `remove`).
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

_CLEARED = 64
"""Cells that are cleared at a time."""


class KeysValues(NamedTuple):
    """What one attention layer looks at."""

    keys: Float[Tensor, "batch kv_heads time head_dim"]
    values: Float[Tensor, "batch kv_heads time head_dim"]


class Places(NamedTuple):
    """Where new tokens stand in their texts."""

    new: Int[Tensor, "#batch new"]
    """The place of each; of padding that of the token before it, or 0."""
    lengths: Int[Tensor, "#batch 1"]
    """Tokens of each text, the new ones included."""
    real: Bool[Tensor, "batch longest"] | None
    """Which cells each text has filled; None: all texts have filled as many."""


@dataclass
class _Target:
    """Where a layer writes the keys of the new tokens: into the same cells of all rows, or into some of each."""

    first: int = 0
    end: int = 0
    cells: tuple[Tensor, Tensor] | None = None
    """Rows and places."""
    mask: Tensor | None = None
    """The real ones of the new tokens."""


class LayerCache:
    """One layer's keys and values: its own, and those that its cross-attention made of the source once.

    Attributes:
        keys, values: [batch, kv_heads, capacity, head_dim]
        sources: those of the sources, each once, [sources, kv_heads, source, head_dim].
        whose: the source of each text, [batch]; None: each text has its own.
    """

    def __init__(
        self, keys: Float[Tensor, "rows kv_heads capacity head_dim"], values: Tensor, target: _Target | None = None
    ) -> None:
        self._rows, self._sources = KeysValues(keys, values), None
        self._target = target or _Target()
        self.keys, self.values = keys, values
        self.sources: KeysValues | None = None
        self.whose: Tensor | None = None
        self._expanded: KeysValues | None = None

    @property
    def source(self) -> KeysValues | None:
        """Those of each text's source, [batch, kv_heads, source, head_dim]."""
        if self.sources is None or self.whose is None:
            return self.sources
        if self._expanded is None:
            self._expanded = KeysValues(*(memory[self.whose] for memory in self.sources))
        return self._expanded

    def read(self, source: KeysValues, whose: Int[Tensor, " batch"] | None = None) -> None:
        """Take these for the sources of the texts."""
        self.sources, self.whose, self._expanded = source, whose, None

    def append(
        self, keys: Float[Tensor, "batch kv_heads new head_dim"], values: Float[Tensor, "batch kv_heads new head_dim"]
    ) -> KeysValues:
        """Write the new keys and values where the cache has made room for them, and return all of them."""
        target = self._target
        for memory, new in ((self.keys, keys), (self.values, values)):
            if target.cells is None:
                memory[:, :, target.first : target.end] = new
            else:
                rows, places = target.cells
                by_token = new.transpose(1, 2)
                memory[rows, :, places] = by_token if target.mask is None else by_token[target.mask]
        return KeysValues(self.keys[:, :, : target.end], self.values[:, :, : target.end])

    def select(self, rows: Int[Tensor, " kept"], length: int, *, sources: bool) -> None:
        """Keep these rows as far as they are filled: most of the memory is still empty, and copying it takes long."""

        def taken(old: Tensor) -> Tensor:
            new = old.new_empty((len(rows), *old.shape[1:]))
            torch.index_select(old[:, :, :length], 0, rows, out=new[:, :, :length])
            return new

        self._rows = KeysValues(taken(self.keys), taken(self.values))
        self.keys, self.values = self._rows
        if self.sources is not None and sources:
            self.read(self.sources, rows if self.whose is None else self.whose[rows])

    def use(self, batch: int) -> None:
        """Let the first `batch` rows of the memory be the batch."""
        self.keys, self.values = (memory[:batch] for memory in self._rows)
        self.whose = self._expanded = None
        self.sources = None if self._sources is None else KeysValues(*(memory[:batch] for memory in self._sources))

    def clear(self, first: int, end: int, filled: Int[Tensor, " rows"]) -> None:
        """Write zeros into cells that no token has: what isn't a number spoils even what isn't looked at."""
        cells = torch.arange(first, end, device=filled.device)
        empty = (cells[None] >= filled[:, None])[:, None, :, None]
        for memory in self._rows:
            memory[:, :, first:end].masked_fill_(empty, 0.0)

    def copy_row(self, row: int, length: int, other: "LayerCache", other_row: int) -> None:
        """Copy the first `length` cells of a row of another memory, and its source."""
        for mine, theirs in zip(self._rows, other._rows, strict=True):
            mine[row, :, :length] = theirs[other_row, :, :length]
        if other.source is None:
            return
        width = other.source.keys.shape[2]
        if self._sources is None or self._sources.keys.shape[2] < width:
            self._sources = KeysValues(*(self._wider(memory, width) for memory in self._sources or (None, None)))
        for mine, theirs in zip(self._sources, other.source, strict=True):
            mine[row, :, :width] = theirs[other_row]

    def _wider(self, old: Tensor | None, width: int) -> Tensor:
        rows, heads, _, head_dim = self._rows.keys.shape
        new = self._rows.keys.new_zeros((rows, heads, width, head_dim))
        if old is not None:
            new[:, :, : old.shape[2]] = old
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

    Attributes:
        layers: what each layer remembers.
        tokens: ids of the tokens read, [batch, capacity].
        batch: texts in it.
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
        self._target = _Target()
        self.layers = [
            LayerCache(
                torch.empty(shape, device=device, dtype=dtype),
                torch.empty(shape, device=device, dtype=dtype),
                self._target,
            )
            for _ in range(layers)
        ]
        self.capacity = capacity
        self.batch = batch
        self.length = 0
        self.source_mask: Bool[Tensor, "batch source"] | None = None
        self._rows = batch
        self._tokens = self.tokens = torch.zeros((batch, capacity), dtype=torch.long, device=device)
        self._device = device
        self._ends: Tensor | None = None
        self._source_masks: Tensor | None = None
        self._finite = 0
        """Cells of every row that hold numbers."""

    @property
    def ends(self) -> Int[Tensor, " batch"]:
        """The cell behind each text's last token: its length."""
        if self._ends is None:
            return torch.full((self.batch,), self.length, device=self._device)
        return self._ends

    def extend(self, tokens: Int[Tensor, "batch new"], mask: Bool[Tensor, "batch new"] | None = None) -> Places:
        """Note more tokens of each text, and make room for their keys and values, which each layer's `append` fills.

        Args:
            tokens: Their ids.
            mask: False for those that are padding, anywhere; None: none is.

        Raises:
            ValueError: the cache is full.
        """
        new = tokens.shape[1]
        if mask is not None and bool(mask.all()):
            mask = None
        if self._ends is None and mask is None:
            first, end = self.length, self.length + new
            self._require(end)
            self.tokens[:, first:end] = tokens
            self.length = end
            self._aim(_Target(first, end))
            where = torch.arange(first, end, device=self._device)[None]
            return Places(where, where[:, -1:] + 1, None)
        before = self.ends
        if mask is None:
            places = before[:, None] + torch.arange(new, device=self._device)
            after = before + new
            cells = (torch.arange(self.batch, device=self._device)[:, None], places)
        else:
            places = before[:, None] + mask.cumsum(dim=1) - 1
            after = before + mask.sum(dim=1)
            rows, columns = mask.nonzero(as_tuple=True)
            cells = (rows, places[rows, columns])
            places = places.clamp(min=0)
        longest = int(after.max())
        self._require(longest)
        self._clear(longest, before)
        self.tokens[cells] = tokens if mask is None else tokens[mask]
        self._set_ends(after)
        self._aim(_Target(0, longest, cells, mask))
        real = torch.arange(longest, device=self._device)[None] < after[:, None]
        return Places(places, after[:, None], real)

    def truncate(self, length: int | Int[Tensor, " batch"]) -> None:
        """Forget all tokens but the first `length` (of each text its own), so that texts can go on otherwise."""
        if isinstance(length, int) and self._ends is None:
            self.length = min(self.length, length)
        elif isinstance(length, int):
            self._set_ends(self.ends.clamp(max=length))
        else:
            self._set_ends(torch.minimum(self.ends, length))

    def select(self, rows: Int[Tensor, " kept"], *, sources: bool = True) -> None:
        """Keep these rows of the batch, in this order (a row may be taken more than once).

        Args:
            rows: Their numbers.
            sources: False: every row keeps its place or takes that of a row with the same source, such as another
                beam of the same search, so what was made of the sources stays where it is.
        """
        for layer in self.layers:
            layer.select(rows, self.length, sources=sources)
        self._tokens = self.tokens = self.tokens[rows]
        self._finite = min(self._finite, self.length)
        self._rows = self.batch = len(rows)
        if self._ends is not None:
            self._set_ends(self._ends[rows])
        if self.source_mask is not None and sources:
            self.source_mask = self.source_mask[rows]

    def clear(self) -> None:
        """Forget all texts. Others are brought in by `put`, up to the batch that the cache was made for."""
        self.batch, self.length, self._ends = 0, 0, None
        self._use()

    def put(self, row: int, other: "KeyValueCache", other_row: int = 0) -> None:
        """Let a text of another cache, with its source, take the place of this row, or of the first one after all.

        Raises:
            ValueError: there is no such row, or the text is too long.
        """
        if not 0 <= row <= self.batch or row >= self._rows:
            raise ValueError(f"the cache has {self.batch} texts and room for {self._rows}: there is no place {row}")
        length = int(other.ends[other_row])
        self._require(length)
        for layer, theirs in zip(self.layers, other.layers, strict=True):
            layer.copy_row(row, length, theirs, other_row)
        self._tokens[row, :length] = other.tokens[other_row, :length]
        first = other.layers[0].source
        if first is not None:
            width = first.keys.shape[2]
            masks = self._source_masks
            if masks is None or masks.shape[1] < width:
                wider = torch.zeros((self._rows, width), dtype=torch.bool, device=self._device)
                if masks is not None:
                    wider[:, : masks.shape[1]] = masks
                masks = self._source_masks = wider
            masks[row] = False
            masks[row, :width] = True if other.source_mask is None else other.source_mask[other_row]
        ends: list[int] = [*self.ends.tolist(), 0][: max(self.batch, row + 1)]
        ends[row] = length
        self._hold(ends)

    def remove(self, row: int) -> None:
        """Forget this row's text; the last one takes its place."""
        last = self.batch - 1
        ends: list[int] = self.ends.tolist()
        if row != last:
            for layer in self.layers:
                layer.copy_row(row, ends[last], layer, last)
            self._tokens[row] = self._tokens[last]
            if self._source_masks is not None:
                self._source_masks[row] = self._source_masks[last]
            ends[row] = ends[last]
        self._hold(ends[:last])

    def _hold(self, ends: list[int]) -> None:
        self.batch = len(ends)
        self._set_ends(torch.tensor(ends, dtype=torch.long, device=self._device))
        self._use()

    def _use(self) -> None:
        for layer in self.layers:
            layer.use(self.batch)
        self.tokens = self._tokens[: self.batch]
        self.source_mask = None if self._source_masks is None else self._source_masks[: self.batch]

    def _set_ends(self, ends: Tensor) -> None:
        known: list[int] = ends.tolist()
        self.length = max(known, default=0)
        self._ends = None if min(known, default=0) == self.length else ends

    def _aim(self, target: _Target) -> None:
        mine = self._target
        mine.first, mine.end, mine.cells, mine.mask = target.first, target.end, target.cells, target.mask

    def _require(self, length: int) -> None:
        if length > self.capacity:
            raise ValueError(f"the cache holds {self.capacity} tokens, and {length} are needed")

    def _clear(self, end: int, filled: Tensor) -> None:
        """See to it that rows that end earlier hold numbers up to here."""
        if end <= self._finite:
            return
        until = min(self.capacity, -(-end // _CLEARED) * _CLEARED)
        every = torch.cat((filled, filled.new_zeros(self._rows - self.batch)))
        for layer in self.layers:
            layer.clear(self._finite, until, every)
        self._finite = until
