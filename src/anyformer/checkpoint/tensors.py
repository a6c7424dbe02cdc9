"""Tensors to a safetensors file and back."""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from anyformer import limits
from anyformer.errors import UserError, cut

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
"""The dtypes that weights are stored in."""


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write a new safetensors file, whose permissions follow the umask.

    Args:
        path: The file, of which there is none yet.
        tensors: Contiguous, on the CPU, no two of them in the same memory.
        metadata: What the header says beside them.

    Raises:
        OSError or SafetensorError: it can't be written.
    """
    path.touch(exist_ok=False)
    permissions = path.stat().st_mode
    save_file(dict(tensors), path, metadata=None if metadata is None else dict(metadata))
    path.chmod(permissions)  # the library's own let nobody else read the file, whatever the umask


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file. Raises UserError where there is none, or it is damaged."""
    limits.check_file(path)
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        reason = cut(str(error))
        raise UserError(f"{path} is not a whole safetensors file ({reason}); copy or download it again.") from error
