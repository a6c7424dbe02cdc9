"""Cross-entropy and its gradient in compiled code (see cross_entropy.cpp)."""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from jaxtyping import BFloat16, Float, Int
from torch import Tensor

from anyformer.blocks.native import table
from anyformer.blocks.native.build import library

_LANES = 16


def cross_entropy_(
    logits: BFloat16[Tensor, "rows vocab"], targets: Int[Tensor, "rows 1"], smoothing: float, factor: float
) -> Float[Tensor, " rows"]:
    """Cross-entropy of each row in nats. The logits, in one piece, become `factor` times its gradient.

    Raises:
        IndexError: A target is no word.
    """
    rows, vocab = logits.shape
    threads, targets = torch.get_num_threads(), targets.long().contiguous()
    if rows and (targets.min() < 0 or targets.max() >= vocab):
        raise IndexError(f"targets lie in [{targets.min()}, {targets.max()}], but there are {vocab} words")
    losses, scratch = torch.empty(rows), torch.empty(threads, vocab + _LANES)
    described = table.CrossEntropy(
        logits=logits.data_ptr(),
        targets=targets.data_ptr(),
        losses=losses.data_ptr(),
        scratch=scratch.data_ptr(),
        rows=rows,
        vocab=vocab,
        smoothing=smoothing,
        factor=factor,
        threads=threads,
    )
    compiled: Any = library().get(wait=True)
    compiled.cross_entropy(ctypes.addressof(described))
    return losses
