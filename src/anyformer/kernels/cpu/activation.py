"""Activations for training in compiled code (see activate.cpp)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import BFloat16
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from anyformer.kernels.cpu import structs
from anyformer.kernels.cpu.library import Kernel, supports_bf16

KERNEL = Kernel("activation")


def can_activate(x: Tensor, factor: Tensor | None) -> bool:
    """Whether `activated` is there for these; it waits for the compiler."""
    return (
        all(part is None or part.dtype == torch.bfloat16 for part in (x, factor))
        and supports_bf16(x)
        and KERNEL.supported()
    )


def activated(
    kind: int,
    x: BFloat16[Tensor, "*shape"],
    factor: BFloat16[Tensor, "*shape"] | None,
    then: Callable[[Tensor], Tensor],
) -> Tensor:
    """What follows on ``act(x)``, or on ``act(x) * factor``. It is differentiable once.

    What the activation makes is not kept for the gradients of what follows, but made again: that takes a hundredth of a
    training step, and saves a block's widest tensor.

    Args:
        kind: The activation's place in `structs.ACTIVATIONS`.
        x: What it is applied to.
        factor: See above.
        then: What follows.
    """
    x, factor = x.contiguous(), None if factor is None else factor.contiguous()
    out: Tensor = _Activated.apply(kind, x, factor)  # pyright: ignore[reportAssignmentType]
    if _others_keep():
        return then(out)
    given = x.detach(), None if factor is None else factor.detach()
    known = out.data_ptr(), out.numel(), out._version

    def pack(kept: Tensor) -> Tensor | torch.Size:
        same = kept.is_contiguous() and (kept.data_ptr(), kept.numel(), kept._version) == known
        return kept.shape if same else kept

    def unpack(kept: Tensor | torch.Size) -> Tensor:
        return kept if isinstance(kept, Tensor) else _forward(kind, *given).view(kept)

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        return then(out)


def _others_keep() -> bool:
    """Whether somebody else decides what is kept, such as gradient checkpointing, which makes everything again."""
    return torch._C._autograd._top_saved_tensors_default_hooks(True) is not None  # pyright: ignore


def _forward(kind: int, x: Tensor, factor: Tensor | None) -> Tensor:
    out = torch.empty_like(x)
    _activate(kind, x=x, multiplier=factor, out=out)
    return out


class _Activated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, kind: int, x: Tensor, factor: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, factor)  # pyright: ignore[reportArgumentType]
        ctx.kind = kind  # pyright: ignore[reportAttributeAccessIssue]
        return _forward(kind, x, factor)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, factor = ctx.saved_tensors
        grads = {
            "grad_x": torch.empty_like(x),
            "grad_multiplier": None if factor is None else torch.empty_like(factor),
        }
        _activate(ctx.kind, x=x, multiplier=factor, grad_out=grad_outputs[0].contiguous(), **grads)
        return None, *grads.values()


def _activate(kind: int, **parts: Tensor | None) -> None:
    places = {name: None if part is None else part.data_ptr() for name, part in parts.items()}
    x = parts["x"]
    assert x is not None
    described = structs.ActivationArgs(kind=kind, count=x.numel(), num_threads=torch.get_num_threads(), **places)
    KERNEL.run(described)
