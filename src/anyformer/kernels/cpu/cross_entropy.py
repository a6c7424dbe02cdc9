"""Cross-entropy and its gradient (see cross_entropy.cpp)."""

import torch
from jaxtyping import BFloat16, Float, Int
from torch import Tensor

from anyformer.kernels.cpu import structs
from anyformer.kernels.cpu.library import Kernel, supports_bf16

KERNEL = Kernel("cross_entropy", structs.CrossEntropyArgs)


def supports(x: Tensor, dtype: torch.dtype) -> bool:
    """Whether `loss_and_grad_` is there for logits of these in a dtype; it waits for the compiler."""
    return supports_bf16(x, dtype) and KERNEL.supported()


def loss_and_grad_(
    logits: BFloat16[Tensor, "rows vocab"], targets: Int[Tensor, "rows 1"], label_smoothing: float, grad_scale: float
) -> Float[Tensor, " rows"]:
    """Cross-entropy of each row in nats. The logits, contiguous, are replaced by `grad_scale` times its gradient.

    Raises:
        IndexError: A target is outside the vocabulary.
    """
    rows, vocab = logits.shape
    targets = targets.long().contiguous()
    if rows and (targets.min() < 0 or targets.max() >= vocab):
        raise IndexError(f"targets lie in [{targets.min()}, {targets.max()}], but the vocabulary has {vocab} tokens")
    losses = torch.empty(rows)
    KERNEL.run(
        logits=logits,
        targets=targets,
        losses=losses,
        rows=rows,
        vocab_size=vocab,
        label_smoothing=label_smoothing,
        grad_scale=grad_scale,
    )
    return losses
