"""The state of a run on disk: whole tensors in one file, where no process writes a shard of its own."""

from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from anyformer import limits
from anyformer.checkpoint import write_tensors
from anyformer.errors import UserError, cut

STATE = "state.safetensors"


def write_state(folder: Path, state: Mapping[str, Tensor], name: str = STATE) -> Path:
    """Write tensors, and return the file. Raises OSError or SafetensorError where the disk refuses."""
    write_tensors(folder / name, {name: tensor.detach().contiguous().cpu() for name, tensor in state.items()})
    return folder / name


def read_state(folder: Path) -> dict[str, Tensor]:
    """Read what `write_state` or several processes wrote. Raises UserError where it is missing or damaged."""
    limits.check_files(folder, ("*.safetensors",))
    if not (folder / STATE).exists() and any(folder.glob("*.safetensors")):
        # It imports torch.distributed, which takes a second.
        from anyformer.training.strategies.shards import read_shards

        return read_shards(folder)
    try:
        return load_file(folder / STATE)
    except (OSError, SafetensorError) as error:
        raise UserError(f"The checkpoint {folder} can't be read: {cut(str(error))}.") from error
