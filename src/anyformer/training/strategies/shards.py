"""Checkpoints of weights that are spread over processes: safetensors files with pieces of tensors.

The files are in the format of torch.distributed.checkpoint, which reads them, so any number of processes can read what
another number wrote. They are named by process, and their metadata says where in the whole each piece belongs.
"""

import json
import warnings
from collections.abc import Collection, Mapping
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors import SafetensorError
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from anyformer.checkpoint import write_tensors
from anyformer.dtensor import is_dtensor, local_tensor
from anyformer.errors import UserError, cut
from anyformer.limits import check_files

_OFFSETS, _OFFSET = "DCP_SHARDING_INFO", "saved_offsets"
"""Names in the metadata of a file, as `HuggingFaceStorageReader` reads them."""


def write_shards(folder: Path, state: Mapping[str, Tensor], part: str = "") -> Path:
    """Write this process's pieces of spread tensors, and whole ones in process 0, without a message to the others.

    Returns:
        Their file.

    HuggingFaceStorageWriter would make two more copies of all of them in memory, which the tensors' own is written from
    here. Raises OSError or SafetensorError.
    """
    pieces, offsets = dict[str, Tensor](), dict[str, dict[str, list[int]]]()
    rank = dist.get_rank()
    for name, tensor in state.items():
        offset = _offset(tensor) if is_dtensor(tensor) else [0] * tensor.dim() if rank == 0 else None
        if offset is not None:
            pieces[name] = local_tensor(tensor.detach()).contiguous().cpu()
            offsets[name] = {_OFFSET: offset}
    file = folder / f"shard-{rank + 1:05}{part}.safetensors"
    write_tensors(file, pieces, {_OFFSETS: json.dumps(offsets)})
    return file


def _offset(tensor: DTensor) -> list[int] | None:
    """Where in the whole tensor this process's piece begins; None where it is empty, or another process writes it."""
    mesh, placements = tensor.device_mesh, tensor.placements
    shape, offset = compute_local_shape_and_global_offset(tensor.shape, mesh, placements)
    copies = zip(placements, mesh.get_coordinate() or (), strict=True)
    first = all(index == 0 for placement, index in copies if placement.is_replicate())
    return list(offset) if first and (0 not in shape or 0 in tensor.shape) else None


def names(folder: Path) -> set[str]:
    """The names of the tensors in a folder. Raises UserError where it can't be read."""
    return set(_contents(folder))


def read_shards(
    folder: Path, parameters: Mapping[str, Tensor] | None = None, only: Collection[str] | None = None
) -> dict[str, Tensor]:
    """Read tensors that `write_shards` or `write_state` wrote, pieces put together.

    Args:
        parameters: by name. A tensor whose name ends in a parameter's comes spread over the processes as that is, and
            all processes must call this. None: all tensors are whole.
        only: names of the tensors; None: all of them.

    Raises:
        UserError: the folder can't be read.
    """
    state: dict[str, Tensor] = {}
    for name, entry in _contents(folder).items():
        if only is not None and name not in only:
            continue
        like, dtype = _namesake(name, parameters or {}), entry.properties.dtype
        if like is None or like.shape != entry.size:
            state[name] = torch.empty(entry.size, dtype=dtype)
        else:
            state[name] = torch.empty_like(like, dtype=dtype)
    try:
        with warnings.catch_warnings():
            # It tells that each process reads for itself, which is known.
            warnings.filterwarnings("ignore", message="torch.distributed is disabled", category=UserWarning)
            load(state, storage_reader=HuggingFaceStorageReader(str(folder)), no_dist=parameters is None)
    except (OSError, SafetensorError, CheckpointException) as error:
        raise _unreadable(folder, error) from error
    return state


def _contents(folder: Path) -> dict[str, TensorStorageMetadata]:
    check_files(folder, ("*.safetensors",))
    try:
        entries = HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata
    except (OSError, SafetensorError) as error:
        raise _unreadable(folder, error) from error
    return {name: entry for name, entry in entries.items() if isinstance(entry, TensorStorageMetadata)}


def _unreadable(folder: Path, error: BaseException) -> UserError:
    reason = getattr(error, "strerror", None) or error
    if isinstance(error, CheckpointException):
        reason = next(iter(error.failures.values()))[0]
    return UserError(f"The checkpoint {folder} can't be read: {cut(str(reason))}.")


def _namesake(name: str, parameters: Mapping[str, Tensor]) -> Tensor | None:
    """The parameter whose state this is: `optimizer.exp_avg.head.bias` is of `head.bias`."""
    while name not in parameters:
        _, dot, name = name.partition(".")
        if not dot:
            return None
    return parameters[name]
