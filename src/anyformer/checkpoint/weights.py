"""The tensors of a model directory, read one by one: safetensors, sharded or not, or pickles if they are allowed."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from anyformer.config import ModelConfig
from anyformer.errors import UserError

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
PICKLE = "pytorch_model.bin"
PICKLE_INDEX = "pytorch_model.bin.index.json"
_MOST_MAPPED = 64 * 2**20


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file. Raises UserError if there is none."""
    value = parse(path)
    if not isinstance(value, dict):
        raise UserError(f"{path} should hold a JSON object, not {type(value).__name__}.")
    return cast("dict[str, Any]", value)


def parse(path: Path) -> object:
    """The JSON value in a file. Raises UserError if there is none, or one too deep or too long for Python."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{path.parent} has no {path.name}.") from error
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} can't be read as JSON: {error}.") from error


def inside(directory: Path, name: str) -> Path:
    """The path of a file that another file names. Raises UserError if it leads out of the directory."""
    try:
        path = (directory / name).resolve()
    except (OSError, ValueError) as error:
        raise UserError(f"{directory} names a file that can't exist, {name[:40]!r}: {error}.") from error
    # A hub download links into its cache, so the folder of the unresolved path counts as well.
    lexical = Path(name)
    if lexical.is_absolute() or ".." in lexical.parts:
        raise UserError(f"{directory} names a file outside itself: {name!r}.")
    return path


class Weights:
    """The tensors of a model directory by name. Nothing is read before it is asked for.

    Raises:
        UserError: no weights, a damaged file, an index that points elsewhere, or pickles that are not allowed.
    """

    described_by = "this config.json"
    """What the shapes of the weights have to fit."""

    def __init__(self, directory: Path, *, allow_pickle: bool = False) -> None:
        self.directory = directory
        self._readers: dict[str, Callable[[], Tensor]] = {}
        self._files: dict[Path, Any] = {}
        self._mapped = 0
        if (directory / INDEX).is_file():
            for name in self._shards(INDEX):
                self._open_safetensors(inside(directory, name))
        elif (directory / SINGLE).is_file():
            self._open_safetensors(directory / SINGLE)
        else:
            self._open_pickles(allow_pickle)

    def __contains__(self, name: str) -> bool:
        return name in self._readers

    @property
    def names(self) -> list[str]:
        """The names of all tensors."""
        return list(self._readers)

    def read(self, name: str) -> Tensor:
        """One tensor, on the CPU, in the format that it is stored in."""
        tensor = self._readers[name]()
        # Pages of a mapped file stay in memory for as long as it is open, so it is opened anew now and then; a tensor
        # that is still in use keeps its own mapping.
        self._mapped += tensor.nbytes
        if self._mapped > _MOST_MAPPED:
            self._files.clear()
            self._mapped = 0
        return tensor

    def _shards(self, index: str) -> list[str]:
        weight_map = read_json(self.directory / index).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise UserError(f"{self.directory / index} has no weight_map.")
        return sorted({str(name) for name in cast("dict[str, Any]", weight_map).values()})

    def _open_safetensors(self, path: Path) -> None:
        for name in cast("list[str]", self._file(path).keys()):
            self._readers[name] = lambda name=name: cast("Tensor", self._file(path).get_tensor(name))

    def _file(self, path: Path) -> Any:
        """The file, opened if it is not. Raises UserError for one that is not whole."""
        if path in self._files:
            return self._files[path]
        try:
            self._files[path] = safe_open(path, framework="pt", device="cpu")
        except FileNotFoundError as error:
            raise UserError(f"{path} is missing, though the index names it.") from error
        except (SafetensorError, OSError) as error:
            raise UserError(f"{path} is not a whole safetensors file ({error}); copy or download it again.") from error
        return self._files[path]

    def _open_pickles(self, allow_pickle: bool) -> None:
        directory = self.directory
        if (directory / PICKLE_INDEX).is_file():
            files = [inside(directory, name) for name in self._shards(PICKLE_INDEX)]
        elif (directory / PICKLE).is_file():
            files = [directory / PICKLE]
        else:
            raise UserError(f"{directory} has no {SINGLE} and no {INDEX}: there are no weights to read.")
        if not allow_pickle:
            raise UserError(
                f"{directory} has only {files[0].name}, a pickle; if you trust its author, add --allow-pickle."
            )
        for path in files:
            for name, tensor in _unpickle(path).items():
                self._readers[name] = lambda tensor=tensor: tensor


def require_layers(config: ModelConfig, weights: Weights) -> None:
    """Raise UserError for more layers than there are weights: a number costs nothing to write, and a layer to build."""
    layers, count = config.encoder_layers + config.decoder_layers, len(weights.names)
    if layers > count:
        raise UserError(f"{weights.directory}: config.json speaks of {layers} layers, and there are {count} weights.")


def require_float(directory: Path, name: str, tensor: Tensor) -> None:
    """Raise UserError for a weight in a number format that no model computes in."""
    if tensor.dtype not in _FLOATS:
        raise UserError(
            f"{directory}: the weight {name} is stored as {str(tensor.dtype).removeprefix('torch.')}, which is not "
            "supported: it should be floating point of 16 bits or more."
        )


_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def _unpickle(path: Path) -> dict[str, Tensor]:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing, though the index names it.") from error
    except Exception as error:
        # torch.load raises whatever the pickle machine met: a damaged file, or more than tensors in it.
        raise UserError(f"{path} can't be read as a file of tensors ({str(error).splitlines()[0]}).") from error
    if not isinstance(state, dict):
        raise UserError(f"{path} should hold a dict of tensors, not {type(state).__name__}.")
    return {name: value for name, value in cast("dict[str, Any]", state).items() if isinstance(value, Tensor)}
