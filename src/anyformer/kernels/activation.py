"""Activations, and the product that gates them; compiled code in training and for large tensors (see
cpu/activation.cpp)."""

import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from anyformer.kernels.autocast import autocasts
from anyformer.kernels.cpu import structs
from anyformer.kernels.cpu.library import Kernel
from anyformer.kernels.operation import operation

KERNEL = Kernel("activation", structs.ActivationArgs, "activation")
_GRAIN = 1 << 15
"""Numbers that torch computes in one thread."""


def relu_squared(x: Tensor) -> Tensor:
    """``max(x, 0)^2`` (So et al. 2021, Primer)."""
    return F.relu(x).square()


def gelu_tanh(x: Tensor) -> Tensor:
    """The approximation of GELU that GPT-2 and T5 v1.1 trained with (Hendrycks & Gimpel 2016, section 2)."""
    return F.gelu(x, approximate="tanh")


def quick_gelu(x: Tensor) -> Tensor:
    """``x sigmoid(1.702 x)``, the other approximation of GELU (Hendrycks & Gimpel 2016, section 2)."""
    return x * torch.sigmoid(1.702 * x)


COMPILED: dict[Callable[..., Tensor], int] = {
    F.relu: structs.RELU,
    relu_squared: structs.RELU_SQUARED,
    F.gelu: structs.GELU,
    gelu_tanh: structs.GELU_TANH,
    quick_gelu: structs.QUICK_GELU,
    F.silu: structs.SILU,
    torch.tanh: structs.TANH,
}
"""The activations that compiled code has, and its number of each."""


_latest: tuple[weakref.ref[Tensor], Callable[[], Tensor]] | None = None
"""The result of the latest compiled activation, and what computes it again."""


def activation(
    input: Float[Tensor, "*shape"],
    function: Callable[[Tensor], Tensor],
    multiplier: Float[Tensor, "*shape"] | None = None,
) -> Float[Tensor, "*shape"]:
    """``function(input)``, or ``function(input) * multiplier``.

    In training with compiled code the result is not kept for the backward pass of the linear layer that follows, but
    computed again: that takes a hundredth of a training step, and saves a block's widest tensor.
    """
    global _latest
    if function not in COMPILED or not _supports(input, multiplier):
        return function(input) if multiplier is None else function(input) * multiplier
    kind, input = COMPILED[function], input.contiguous()
    multiplier = None if multiplier is None else multiplier.contiguous()
    out = forward(input, multiplier, kind)
    if input.requires_grad and not torch.compiler.is_compiling():
        operands = input.detach(), None if multiplier is None else multiplier.detach()
        _latest = weakref.ref(out), partial(forward.function, *operands, kind)
    return out


def _supports(x: Tensor, multiplier: Tensor | None) -> bool:
    agree = multiplier is None or (multiplier.shape == x.shape and multiplier.dtype == x.dtype)
    if x.dtype == torch.bfloat16:
        return agree and (x.requires_grad or autocasts(x)) and KERNEL.supports_bf16(x)
    # Torch computes what is left over of each thread's part by other instructions, so that their number counts.
    return agree and x.dtype == torch.float32 and x.is_cpu and x.numel() > _GRAIN and KERNEL.supported()


@operation("activation")
def forward(x: Tensor, multiplier: Tensor | None, kind: int) -> Tensor:
    """``act(x)``, or ``act(x) * multiplier``, of contiguous tensors."""
    out = torch.empty_like(x)
    KERNEL.run(kind=kind, dtype=structs.DTYPES[x.dtype], count=x.numel(), x=x, multiplier=multiplier, out=out)
    return out


@operation("activation_backward")
def backward(grad: Tensor, x: Tensor, multiplier: Tensor | None, kind: int) -> tuple[Tensor, Tensor]:
    """The gradients of x and of the multiplier, which is empty where there is none."""
    grad, grad_x = grad.contiguous(), torch.empty_like(x)
    grad_multiplier = x.new_empty(0) if multiplier is None else torch.empty_like(multiplier)
    grads = {"grad_out": grad, "grad_x": grad_x, "grad_multiplier": None if multiplier is None else grad_multiplier}
    KERNEL.run(kind=kind, dtype=structs.DTYPES[x.dtype], count=x.numel(), x=x, multiplier=multiplier, **grads)
    return grad_x, grad_multiplier


forward.register_autograd(backward, saved=lambda inputs, _, __: inputs)


def recomputed_in_backward(x: Tensor) -> AbstractContextManager[object]:
    """A context in which autograd saves the inputs of the latest activation in the place of x, if x is its result."""
    global _latest
    latest, _latest = _latest, None
    if latest is None or latest[0]() is not x:
        return nullcontext()
    # Somebody else may decide what is saved, such as activation checkpointing, which recomputes everything.
    if torch._C._autograd._top_saved_tensors_default_hooks(True) is not None:  # pyright: ignore[reportPrivateUsage, reportAttributeAccessIssue]
        return nullcontext()
    recompute, saved = latest[1], _identity(x)

    def pack(tensor: Tensor) -> Tensor | torch.Size:
        return tensor.shape if tensor.is_contiguous() and _identity(tensor) == saved else tensor

    def unpack(packed: Tensor | torch.Size) -> Tensor:
        return packed if isinstance(packed, Tensor) else recompute().view(packed)

    return torch.autograd.graph.saved_tensors_hooks(pack, unpack)


def _identity(x: Tensor) -> tuple[object, ...]:
    """Key that contiguous tensors with the same numbers share; not the address of a storage, which is null
    for tensors without memory."""
    storage = x.untyped_storage()._cdata  # pyright: ignore[reportPrivateUsage]
    return storage, x.storage_offset(), x.numel(), x._version
