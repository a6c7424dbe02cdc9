"""Tensors on disk: a `TensorSource` for each format of model directories, safetensors files, a hash of weights.

GGUF files are a source in `checkpoint.gguf.source`.
"""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, cast

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor
from typing_extensions import override

from anyformer.checkpoint import generation_settings, hub, pooling
from anyformer.config import ModelConfig
from anyformer.errors import UserError, cut, located
from anyformer.families import FAMILIES, from_huggingface, own
from anyformer.families.base import Family
from anyformer.kernels.quantization import GROUP, QuantizedWeight
from anyformer.limits import check_file, check_files, open_file, path_inside, read_object, reading
from anyformer.model import Origin
from anyformer.tokenizer import Tokenizer
from anyformer.tokenizer.files import TOKENIZER_FILES

SAFETENSORS = "model.safetensors"
SAFETENSORS_INDEX = f"{SAFETENSORS}.index.json"
PICKLE = "pytorch_model.bin"
_READ = (
    *("config.json", generation_settings.FILE, SAFETENSORS, SAFETENSORS_INDEX, PICKLE, f"{PICKLE}.index.json"),
    *pooling.FILES,
    *TOKENIZER_FILES,
)
"""Files that are read from a directory, beside those that an index names."""
_MAX_MAPPED = 64 * 2**20
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
"""The dtypes that weights are stored in."""
_NAMES = {
    torch.int64: "I64",
    torch.float64: "F64",
    torch.float32: "F32",
    torch.int32: "I32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""Dtypes in a safetensors file, in the order of its tensors: the widest first, so that each is aligned."""
BLOCK = 1 << 20
_FOLDED = 16
"""Words of 8 bytes that are added up before they are hashed."""


class TensorSource(ABC):
    """Named tensors on disk and what the files say about their model. No tensor is read before it is asked for.

    A new format is a subclass and a line in `checkpoint.load.open_source`.

    Attributes:
        path: The directory or file, for messages.
        config: The model as the files describe it; `assign.config_of` lets the tensors have the last word.
        family: Its tables of names.
        dtype: The dtype that the model computes in; None: that of most bytes of its floating-point tensors.
        origin: What is written back when the model is saved.
    """

    described_by: ClassVar[str] = "this config.json"
    """Origin of the shapes that the tensors have to fit, for messages."""

    path: Path
    config: ModelConfig
    family: Family
    names: Collection[str]
    dtype: torch.dtype | None = None
    origin: Origin = Origin()

    @abstractmethod
    def read(self, name: str) -> Tensor | QuantizedWeight:
        """One tensor on the CPU, in the dtype that it is stored in. Raises UserError for one that is damaged."""

    def pooling_weights(self) -> list[dict[str, Tensor]]:
        """The weights of the linear layers of its pooling: ``weight`` and perhaps ``bias`` of each, in their order."""
        return []

    @abstractmethod
    def tokenizer(self) -> Tokenizer | None:
        """The tokenizer that lies with the model. Raises UserError for one that is damaged."""


class _ModelDirectory(TensorSource):
    """A directory with a config.json, and the files that may accompany it."""

    def __init__(self, path: Path, raw: Mapping[str, Any], family: Family | None = None) -> None:
        self.path = path
        self.origin = Origin(config=raw, generation=generation_settings.read(path, raw))
        with located(path):
            config = from_huggingface(raw)
        self.config = replace(config, pooling=pooling.read(path))
        self.family = family or FAMILIES[raw["model_type"]]

    @override
    def pooling_weights(self) -> list[dict[str, Tensor]]:
        files = map(read_tensors, pooling.weight_files(self.path))
        return [{name.removeprefix("linear."): tensor for name, tensor in file.items()} for file in files]

    @override
    def tokenizer(self) -> Tokenizer | None:
        return Tokenizer.find(self.path)


class SafetensorsSource(_ModelDirectory):
    """``model.safetensors``, or the shards that ``model.safetensors.index.json`` names, mapped into memory.

    Raises UserError for damaged files, or an index that leads elsewhere.
    """

    def __init__(self, path: Path, raw: Mapping[str, Any], family: Family | None = None) -> None:
        super().__init__(path, raw, family)
        self._open_files: dict[Path, Any] = {}
        self._mapped_bytes = 0
        self._stored = {
            self.family.current_name(name): (file, name)
            for file in _files(path, SAFETENSORS)
            for name in cast("list[str]", self._open(file).keys())
        }
        self.names = self._stored.keys()

    @override
    def read(self, name: str) -> Tensor | QuantizedWeight:
        return self._read(name)

    def _read(self, name: str) -> Tensor:
        file, stored_name = self._stored[name]
        tensor = cast("Tensor", self._open(file).get_tensor(stored_name))
        # Pages of a mapped file stay in memory for as long as it is open, so it is opened anew now and then; a tensor
        # that is still in use keeps its own mapping.
        self._mapped_bytes += tensor.nbytes
        if self._mapped_bytes > _MAX_MAPPED:
            self._open_files.clear()
            self._mapped_bytes = 0
        return tensor

    def _open(self, path: Path) -> Any:
        if path not in self._open_files:
            check_file(path)
            try:
                self._open_files[path] = safe_open(path, framework="pt", device="cpu")
            except FileNotFoundError as error:
                raise UserError(f"{path} is missing, though the index names it.") from error
            except (SafetensorError, OSError) as error:
                raise _damaged(path, error) from error
        return self._open_files[path]


class QuantizedSource(SafetensorsSource):
    """A directory of a quantized model, as `save` writes it (see `families.own.quantized_config_json`).

    The safetensors hold ``X.weight.integers``, ``X.weight.scales`` and, for 4 bits, ``X.weight.minima`` in the place of
    ``X.weight``.
    """

    def __init__(self, path: Path, raw: Mapping[str, Any]) -> None:
        # The config.json is that of the original family, the names of the tensors are ours.
        super().__init__(path, own.unquantized_config_json(raw), replace(own.FAMILY, ties_missing_head=True))
        quantized = {name.removesuffix(".integers") for name in self._stored if name.endswith(".integers")}
        parts = {f"{name}.{part}" for name in quantized for part in QuantizedWeight._fields}
        self.names = [*(name for name in self._stored if name not in parts), *quantized]

    @override
    def read(self, name: str) -> Tensor | QuantizedWeight:
        if name in self._stored:
            return self._read(name)
        if f"{name}.scales" not in self._stored:
            raise UserError(f"{self.path}: the weight {name}.scales is missing.")
        minima = self._read(f"{name}.minima") if f"{name}.minima" in self._stored else None
        weight = QuantizedWeight(self._read(f"{name}.integers"), self._read(f"{name}.scales"), minima)
        rows, groups = weight.scales.shape if weight.scales.dim() == 2 else (0, 0)
        integers = (torch.int8, groups * GROUP) if weight.bits == 8 else (torch.uint8, groups * GROUP // 2)
        for part, tensor in weight._asdict().items():
            dtype, columns = integers if part == "integers" else (torch.float16, groups)
            if tensor is not None and (tensor.dtype, *tensor.shape) != (dtype, rows, columns):
                stored = f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
                raise UserError(f"{self.path}: the weight {name}.{part}, {stored}, does not fit {self.described_by}.")
        return weight


class PickleSource(_ModelDirectory):
    """``pytorch_model.bin``, or the shards that its index names, of which only tensors are unpickled.

    Raises UserError where there are no weights, for damaged files, or pickles that are not allowed.
    """

    def __init__(self, path: Path, raw: Mapping[str, Any], *, allow_pickle: bool) -> None:
        super().__init__(path, raw)
        files = _files(path, PICKLE)
        if not has_weights(path, PICKLE):
            raise UserError(f"{path} has no {SAFETENSORS} and no {SAFETENSORS_INDEX}: there are no weights to read.")
        if not allow_pickle:
            raise UserError(f"{path} has only {files[0].name}, a pickle; if you trust its author, add --allow-pickle.")
        self._tensors = {
            self.family.current_name(name): tensor for file in files for name, tensor in _unpickle(file).items()
        }
        self.names = self._tensors.keys()

    @override
    def read(self, name: str) -> Tensor:
        return self._tensors[name]


def read_config_json(path: Path) -> dict[str, Any]:
    """The config.json of a model directory.

    Raises UserError where it can't be read, or a file of the model or tokenizer is a link out of it, or no file.
    """
    check_files(path, _READ)
    return read_object(path / "config.json")


def has_weights(path: Path, name: str) -> bool:
    """Whether a directory has a file of this name, or an index of several."""
    return (path / name).is_file() or (path / f"{name}.index.json").is_file()


def _files(path: Path, name: str) -> list[Path]:
    """The file of this name, else the shards that its index names."""
    single, index = path / name, path / f"{name}.index.json"
    if not index.is_file():
        return [single]
    weight_map = read_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise UserError(f"{index} has no weight_map.")
    names = sorted(set(map(str, cast("dict[str, Any]", weight_map).values())))
    shards = [path_inside(path, shard) for shard in names]
    return [single] if single.is_file() else shards  # transformers leaves the index of an earlier model behind


def write_tensors(
    path: Path,
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str] | None = None,
    read: Callable[[str], Tensor] | None = None,
) -> None:
    """Write a new safetensors file, byte for byte as safetensors' ``save_file`` does, one tensor after the other.

    Args:
        path: The file, of which there is none yet.
        tensors: By name, in the order in which they are read. Of the meta device where `read` gives the numbers.
        metadata: What the header says beside them.
        read: A tensor on the CPU, when its turn has come; None: the tensors are there.

    Raises:
        OSError: it can't be written.
    """
    header: dict[str, Any] = {} if metadata is None else {"__metadata__": dict(metadata)}
    end = 0
    order = list(_NAMES)
    for name, tensor in sorted(tensors.items(), key=lambda item: (order.index(item[1].dtype), item[0])):
        start, end = end, end + tensor.nbytes
        header[name] = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with path.open("xb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, tensor in tensors.items():
            file.seek(8 + len(text) + header[name]["data_offsets"][0])
            numbers = (tensor if read is None else read(name)).detach().contiguous()
            file.write(numbers.reshape(-1).view(torch.uint8).numpy().data)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file. Raises UserError where there is none, or it is damaged."""
    check_file(path)
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise _damaged(path, error) from error


def check_dtype(path: Path, name: str, tensor: Tensor) -> None:
    """Raise UserError for a tensor of integers, or of fewer than 16 bits."""
    if tensor.dtype not in _FLOATS:
        stored = str(tensor.dtype).removeprefix("torch.")
        raise UserError(f"{path}: {name} is stored as {stored}: it should be floating point of 16 bits or more.")


def _damaged(path: Path, error: Exception) -> UserError:
    return UserError(f"{path} is not a whole safetensors file ({cut(str(error))}); copy or download it again.")


def weights_fingerprint(path_or_hub_id: str | Path, *, allow_pickle: bool = False) -> str:
    """A hash of all bytes of the files that hold the weights of what `load` would load, wherever they are.

    It tells whether weights have changed; against somebody who forges files it is no protection.

    Raises:
        UserError: no such model, or a file that can't be read.
    """
    # Sizes and headers are those of any model of the same shape, and times are lost when a file is copied. SHA-256 of
    # all bytes takes two seconds a gigabyte on processors without instructions for it, which is longer than loading
    # the weights. So the words of a block are folded before they are hashed: words that are 1/16 of a block apart are
    # added up, modulo 2^64. A change is missed only where such a sum happens to be the same.
    digest = hashlib.sha256()
    path = hub.find(path_or_hub_id, allow_pickle=allow_pickle)
    kind = SAFETENSORS if has_weights(path, SAFETENSORS) else PICKLE
    for file in _files(path, kind) if path.is_dir() else [path]:
        with reading(file), open_file(file) as opened:
            digest.update(opened.seek(0, 2).to_bytes(8, "little"))
            opened.seek(0)
            while block := opened.read(BLOCK):
                padded = block + bytes(-len(block) % (8 * _FOLDED))
                digest.update(np.frombuffer(padded, np.uint64).reshape(_FOLDED, -1).sum(axis=0).tobytes())
    return digest.hexdigest()


def _unpickle(path: Path) -> dict[str, Tensor]:
    check_file(path)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing, though the index names it.") from error
    except Exception as error:
        # torch.load raises whatever the pickle machine met: a damaged file, or more than tensors in it.
        raise UserError(f"{path} can't be read as a file of tensors ({cut(str(error).splitlines()[0])}).") from error
    if not isinstance(state, dict):
        raise UserError(f"{path} should hold a dict of tensors, not {type(state).__name__}.")
    return {name: value for name, value in cast("dict[str, Any]", state).items() if isinstance(value, Tensor)}
