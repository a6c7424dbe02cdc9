"""The state of training on disk: named tensors in one safetensors file."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from anyformer.errors import UserError

STATE = "state.safetensors"


def write_state(folder: Path, state: Mapping[str, Tensor], name: str = STATE) -> None:
    """Write tensors and wait until they are on the disk. Raises OSError or SafetensorError where it refuses."""
    place = folder / name
    save_file({name: tensor.detach().contiguous().cpu() for name, tensor in state.items()}, place)
    with place.open("rb") as file:
        os.fsync(file.fileno())


def read_state(folder: Path) -> dict[str, Tensor]:
    """Read what `write_state` or several processes wrote. Raises UserError where it is missing or damaged."""
    if not (folder / STATE).exists() and any(folder.glob("*.safetensors")):
        # It imports torch.distributed, which takes a second.
        from anyformer.training.engines.sharded import read_shards

        return read_shards(folder)
    try:
        return load_file(folder / STATE)
    except (OSError, SafetensorError) as error:
        raise UserError(f"The checkpoint {folder} can't be read: {error}.") from error
