"""Tensors that are spread over processes (DTensors, as FSDP2 makes of weights), and whole ones.

torch.distributed.tensor is imported where there is such a tensor only: it takes most of a second.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeGuard

import torch
from torch import Tensor

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh
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


def local_tensor(tensor: Tensor) -> Tensor:
    """This process's piece of a tensor that is spread, or the whole of one that isn't."""
    return tensor.to_local() if is_dtensor(tensor) else tensor


def cut_rows(tensor: Tensor, mesh: DeviceMesh) -> Tensor:
    """A copy of this process's rows of a whole tensor, on the mesh's devices, cut as FSDP2 cuts.

    Of a tensor that is mapped from a file nothing else is read. Nothing is sent.
    """
    from torch.distributed.tensor import DTensor, Shard

    pieces, rank = tensor.detach().chunk(mesh.size()), mesh.get_local_rank()
    own = pieces[rank] if rank < len(pieces) else tensor.detach()[:0]
    piece = own.to(mesh.device_type, copy=True, memory_format=torch.contiguous_format)
    stride = torch.empty(tensor.shape, device="meta").stride()
    return DTensor.from_local(piece, mesh, [Shard(0)], run_check=False, shape=tensor.shape, stride=stride)


def cut_like(tensor: Tensor, reference: Tensor) -> Tensor:
    """A copy of this process's rows of a whole tensor where the reference is spread; otherwise the tensor itself."""
    return cut_rows(tensor, reference.device_mesh) if is_dtensor(reference) else tensor


def copy_like(tensor: Tensor, reference: Tensor) -> Tensor:
    """A copy of a whole tensor on the reference's device, spread over the processes as that is."""
    return distribute_like(tensor.detach().to(reference.device, copy=True), reference)
