"""Cross-entropy and its gradient in compiled code (see cross_entropy.cpp)."""

from __future__ import annotations

import torch
from jaxtyping import BFloat16, Float, Int
from torch import Tensor

from anyformer.kernels.cpu import structs
from anyformer.kernels.cpu.library import Kernel, supports_bf16

KERNEL = Kernel("cross_entropy")


def can_soften(x: Tensor, dtype: torch.dtype) -> bool:
    """Whether `cross_entropy_` is there for logits of this in a format; it waits for the compiler."""
    return supports_bf16(x, dtype) and KERNEL.supported()


def cross_entropy_(
    logits: BFloat16[Tensor, "rows vocab"], targets: Int[Tensor, "rows 1"], smoothing: float, factor: float
) -> Float[Tensor, " rows"]:
    """Cross-entropy of each row in nats. The logits, in one piece, become `factor` times its gradient.

    Raises:
        IndexError: A target is no word.
    """
    rows, vocab = logits.shape
    targets = targets.long().contiguous()
    if rows and (targets.min() < 0 or targets.max() >= vocab):
        raise IndexError(f"targets lie in [{targets.min()}, {targets.max()}], but there are {vocab} words")
    losses = torch.empty(rows)
    described = structs.CrossEntropyArgs(
        logits=logits.data_ptr(),
        targets=targets.data_ptr(),
        losses=losses.data_ptr(),
        rows=rows,
        vocab_size=vocab,
        label_smoothing=smoothing,
        grad_scale=factor,
        num_threads=torch.get_num_threads(),
    )
    KERNEL.run(described)
    return losses
