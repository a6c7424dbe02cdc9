"""The dtype that autocast gives to matrix multiplications."""

import weakref
from contextlib import AbstractContextManager, nullcontext

import torch
from jaxtyping import Float
from torch import Tensor

from anyformer.kernels.operation import constant_result


def autocasts(x: Tensor) -> bool:
    """Whether autocast is enabled on the tensor's device."""
    device = x.device.type
    return device != "meta" and torch.is_autocast_enabled(device)


def matmul_dtype(x: Tensor) -> torch.dtype:
    """Autocast's dtype where it is enabled, otherwise that of the tensor."""
    return torch.get_autocast_dtype(x.device.type) if autocasts(x) else x.dtype


def in_float32(x: Tensor) -> Tensor:
    """The tensor in float32 at least where autocast is enabled, which leaves sums to it; elsewhere as it is."""
    return x.to(torch.promote_types(x.dtype, torch.float32)) if autocasts(x) else x


def autocast_disabled(x: Tensor) -> AbstractContextManager[object]:
    """A context in which operations on the tensor's device keep the dtype of their inputs."""
    device = x.device.type
    return torch.autocast(device, enabled=False) if _is_available(device) else nullcontext()


@constant_result
def _is_available(device: str) -> bool:
    """Whether a kind of device has autocast, which torch.compile of torch 2.9 can't ask."""
    return torch.amp.is_autocast_available(device)


_latest: tuple[weakref.ref[Tensor], tuple[int, bool], weakref.ref[Tensor]] | None = None


def as_rows(x: Float[Tensor, "*batch inputs"], dtype: torch.dtype) -> Float[Tensor, "rows inputs"]:
    """The vectors as rows of a matrix in a dtype; the same tensor for query, key and value, which convert one x."""
    global _latest
    if x.dtype == dtype or not torch.is_grad_enabled() or torch.compiler.is_compiling():
        return x.reshape(-1, x.shape[-1]).to(dtype)
    latest, state = _latest, (x._version, x.requires_grad)
    if latest is not None and latest[0]() is x and latest[1] == state:
        rows = latest[2]()
        if rows is not None and rows.dtype == dtype:
            return rows
    rows = x.reshape(-1, x.shape[-1]).to(dtype)
    _latest = weakref.ref(x), state, weakref.ref(rows)
    return rows
