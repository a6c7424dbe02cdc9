"""Functions of many rows, whose intermediate results would not fit into memory together."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint


def in_parts(function: Callable[..., Tensor], *rows: Tensor, size: int) -> Tensor:
    """``function(*rows)``, computed for `size` rows at a time, and in the backward pass once more.

    Args:
        function: Returns a number for each row.
        rows: Tensors of the same length.
    """
    if len(rows[0]) <= size:
        return function(*rows)
    parts = zip(*(tensor.split(size) for tensor in rows), strict=True)
    return torch.cat([checkpoint(function, *part, use_reentrant=False, preserve_rng_state=False) for part in parts])
