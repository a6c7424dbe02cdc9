"""Checkpoints of weights that are spread over processes: safetensors files with pieces of tensors.

They are written and read by torch.distributed.checkpoint, so any number of processes can read what another number
wrote. The files are named by process, and their metadata says where in the whole each piece belongs.
"""

import warnings
from collections.abc import Collection, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from anyformer.errors import UserError, cut
from anyformer.limits import check_files


def write_shards(folder: Path, state: Mapping[str, Tensor]) -> None:
    """Write each process's pieces of spread tensors, and whole ones once, on all processes. Raises OSError."""
    pieces = {name: tensor.detach() for name, tensor in state.items()}
    try:
        save(pieces, storage_writer=HuggingFaceStorageWriter(str(folder), save_distributed=True))
    except CheckpointException as error:
        raise OSError(_reason(error)) from error


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
    return UserError(f"The checkpoint {folder} can't be read: {cut(_reason(error))}.")


def _namesake(name: str, parameters: Mapping[str, Tensor]) -> Tensor | None:
    """The parameter whose state this is: `optimizer.exp_avg.head.bias` is of `head.bias`."""
    while name not in parameters:
        _, dot, name = name.partition(".")
        if not dot:
            return None
    return parameters[name]


def _reason(error: BaseException) -> str:
    if isinstance(error, CheckpointException):
        return str(next(iter(error.failures.values()))[0])
    return str(getattr(error, "strerror", None) or error)
