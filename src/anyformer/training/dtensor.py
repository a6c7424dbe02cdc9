"""Tensors that are spread over processes (DTensors, as FSDP2 makes of weights), and whole ones.

torch.distributed.tensor is imported where there is such a tensor only: it takes most of a second.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeGuard

from torch import Tensor

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor


def is_dtensor(tensor: Tensor) -> TypeGuard[DTensor]:
    """Whether each process has but a share of a tensor."""
    return hasattr(tensor, "full_tensor")


def full_tensor(tensor: Tensor) -> Tensor:
    """The whole tensor, in every process; all processes must call it."""
    return tensor.full_tensor() if is_dtensor(tensor) else tensor


def distribute_like(tensor: Tensor, reference: Tensor) -> Tensor:
    """This process's view of a whole tensor, cut as the reference is; nothing is sent.

    The tensor is the same in every process, on the reference's device and of its shape, or spread like it already.
    """
    if not is_dtensor(reference) or is_dtensor(tensor):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(tensor, reference.device_mesh, reference.placements, src_data_rank=None)


def copy_like(tensor: Tensor, reference: Tensor) -> Tensor:
    """A copy of a whole tensor on the reference's device, spread over the processes as that is."""
    return distribute_like(tensor.detach().to(reference.device, copy=True), reference)
