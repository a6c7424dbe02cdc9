"""Low-rank adapters of a model in compiled code: tables of pointers to their factors."""

import ctypes
from collections.abc import Iterable
from ctypes import c_void_p
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from anyformer.adapters.modules import adapter_of
from anyformer.blocks.linear import Linear, LowRankAdapter, acting_adapters
from anyformer.blocks.quantized import QuantizedMatrix
from anyformer.kernels.cpu import structs
from anyformer.kernels.packed_weight import BLOCK_ROWS


class _Terms(NamedTuple):
    """The low-rank terms of adapters that act together."""

    table: Any
    """One of each layer, by `Matrix.adapted`."""
    max_rank: int
    kept: list[Tensor]
    """The factors that the table points to."""


class CompiledAdapters:
    """The adapters of the layers in a table of pointers.

    Factors are copied when they act for the first time: in float32 beside weights in float32, elsewhere in bfloat16,
    since the inputs of such weights are rounded as coarsely.
    """

    def __init__(self) -> None:
        self._layers: list[Linear] = []
        self._all: list[LowRankAdapter] = []
        self._names: list[str] = []
        self._foreign: set[str] = set()
        self._terms: dict[tuple[str, ...], _Terms] = {}

    def add(self, layer: Linear) -> int:
        """Add a layer, and return its index in tables of terms; 0: it has no adapters."""
        if layer.adapters is None:
            return 0
        for name, adapter in cast("Iterable[tuple[str, LowRankAdapter]]", layer.adapters.items()):
            self._all.append(adapter)
            self._names += [] if name in self._names else [name]
            # DoRA is more than a sum, and the rows of experts are sorted.
            if type(adapter) is not LowRankAdapter or adapter.magnitude is not None:
                self._foreign.add(name)
        self._layers.append(layer)
        return len(self._layers)

    def supports(self, batch: int) -> bool:
        """Whether compiled code computes all adapters that act on so many sequences."""
        acting = {name for names in acting_adapters(self._names, batch) for name in names}
        return not acting or (acting.isdisjoint(self._foreign) and all(each.enabled for each in self._all))

    def of(self, batch: int, new: int) -> tuple[Any, int]:
        """Pointers to the terms of each row, `new` rows a sequence, and the highest rank; None and 0: none acts."""
        terms = [self._together(names) if names else None for names in acting_adapters(self._names, batch)]
        if not any(terms):
            return None, 0
        pointers = [None if each is None else ctypes.addressof(each.table) for each in terms for _ in range(new)]
        return (c_void_p * len(pointers))(*pointers), max(0 if each is None else each.max_rank for each in terms)

    def _together(self, names: tuple[str, ...]) -> _Terms:
        """The terms of adapters that act together: in each layer one, of the sum of their ranks."""
        if names not in self._terms:
            table, kept = (structs.LowRank * (1 + len(self._layers)))(), list[Tensor]()
            for index, layer in enumerate(self._layers, start=1):
                if adapters := [each for name in names if (each := adapter_of(layer, name)) is not None]:
                    weight = cast("Tensor | QuantizedMatrix", layer.weight)
                    is_float32 = isinstance(weight, Tensor) and weight.dtype == torch.float32
                    dtype = torch.float32 if is_float32 else torch.bfloat16
                    a = torch.cat([each.a for each in adapters])
                    b = torch.cat([each.scale * each.b for each in adapters], dim=1)
                    panels = [_panels(each, dtype) for each in (a, b)]
                    kept += panels
                    table[index] = structs.LowRank(*map(structs.address, panels), len(a))
            self._terms[names] = _Terms(table, max(term.rank for term in table), kept)
        return self._terms[names]


def _panels(factor: Float[Tensor, "rows depth"], dtype: torch.dtype) -> Float[Tensor, "panels parts 16 part"]:
    """Panels of 16 rows of a factor, padded with zeros: [depth, 16], of bfloat16 [depth / 2, 16, 2]."""
    part = 4 // dtype.itemsize
    rows, depth = factor.shape
    padded = F.pad(factor.detach(), (0, -depth % part, 0, -rows % BLOCK_ROWS))
    return padded.view(-1, BLOCK_ROWS, padded.shape[1] // part, part).transpose(1, 2).to(dtype).contiguous()
