"""What linear layers are given, in the format of their products."""

from __future__ import annotations

import weakref

import torch
from jaxtyping import Float
from torch import Tensor

_latest: tuple[weakref.ref[Tensor], tuple[int, bool], weakref.ref[Tensor]] | None = None


def rows_of(x: Float[Tensor, "*batch inputs"], dtype: torch.dtype) -> Float[Tensor, "rows inputs"]:
    """Rows of numbers in a format; the same ones for queries, keys and values, which are made of the same vectors."""
    global _latest
    if x.dtype == dtype or not torch.is_grad_enabled() or torch.compiler.is_compiling():
        return x.reshape(-1, x.shape[-1]).to(dtype)
    latest, state = _latest, (x._version, x.requires_grad)
    if latest is not None and latest[0]() is x and latest[1] == state:
        known = latest[2]()
        if known is not None and known.dtype == dtype:
            return known
    made = x.reshape(-1, x.shape[-1]).to(dtype)
    _latest = weakref.ref(x), state, weakref.ref(made)
    return made
