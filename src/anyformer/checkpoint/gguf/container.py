"""The GGUF container: a header, metadata and tensors, mapped into memory.

Layout, all little-endian (the format's own specification, versions 2 and 3)::

    "GGUF"  version u32  tensors u64  pairs u64
    pairs    key string, type u32, value           string: length u64, UTF-8
    tensors  name string, dimensions u32, each u64, type u32, offset u64
    padding  to the alignment
    data     each tensor at its offset, aligned

A file may come from anyone. Every count and length is held against the bytes that are left before anything is read or
made by it, so that no header takes more time or memory than its file is long.
"""

import mmap
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from anyformer.errors import UserError, quote
from anyformer.limits import open_file, reading

_VERSIONS = (2, 3)
_ALIGNMENT, _MOST_ALIGNMENT = 32, 2**20
_MOST_DIMENSIONS = 4
_LONGEST_NAME = 2**16
_SMALLEST_PAIR, _SMALLEST_TENSOR = 8 + 4 + 1, 8 + 4 + 8 + 4 + 8

T = TypeVar("T")

_STRING, _ARRAY, _FLOAT32 = 8, 9, 6
_NUMBERS = {0: "B", 1: "b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "?", 10: "<Q", 11: "<q", 12: "<d"}
"""Types of values: what both struct and numpy call them."""


@dataclass(frozen=True)
class TensorType:
    """One format. A row is a whole number of blocks, whose weights share their scales."""

    number: int
    name: str
    block: int
    """Weights in a block."""
    bytes: int
    """Bytes of a block."""

    def size(self, shape: Sequence[int]) -> int:
        """Bytes of a tensor of this shape."""
        return prod(shape) // self.block * self.bytes


_TYPES = [
    (1, {"F32": (0, 4), "F16": (1, 2), "BF16": (30, 2), "F64": (28, 8)}),
    (1, {"I8": (24, 1), "I16": (25, 2), "I32": (26, 4), "I64": (27, 8)}),
    (32, {"Q4_0": (2, 18), "Q4_1": (3, 20), "Q5_0": (6, 22), "Q5_1": (7, 24), "Q8_0": (8, 34), "Q8_1": (9, 40)}),
    (256, {"Q2_K": (10, 84), "Q3_K": (11, 110), "Q4_K": (12, 144), "Q5_K": (13, 176), "Q6_K": (14, 210)}),
    (256, {"Q8_K": (15, 292), "TQ1_0": (34, 54), "TQ2_0": (35, 66)}),
    (256, {"IQ1_S": (19, 50), "IQ1_M": (29, 56), "IQ2_XXS": (16, 66), "IQ2_XS": (17, 74), "IQ2_S": (22, 82)}),
    (256, {"IQ3_XXS": (18, 98), "IQ3_S": (21, 110), "IQ4_XS": (23, 136)}),
    (32, {"IQ4_NL": (20, 18), "MXFP4": (39, 17)}),
    (64, {"NVFP4": (40, 36)}),
    (128, {"Q1_0": (41, 18)}),
]
"""Weights in a block, and each name with its number and the bytes of a block."""
NAMED = {name: TensorType(row[0], name, block, row[1]) for block, types in _TYPES for name, row in types.items()}
TYPES = {kind.number: kind for kind in NAMED.values()}


@dataclass(frozen=True)
class TensorInfo:
    """A tensor's type and position in the file."""

    shape: tuple[int, ...]
    """The slowest dimension first, as in torch; the file lists them the other way round."""
    type: TensorType
    start: int
    """First byte in the file."""

    @property
    def end(self) -> int:
        """The byte after the last one."""
        return self.start + self.type.size(self.shape)


class Container:
    """An open GGUF file.

    Attributes:
        metadata: Key -> number, bool, text, list of texts, or array of numbers.
        tensors: Name -> position, in the file's order.

    Raises UserError for what is no GGUF file, is cut off or damaged, or of a version or type that is not known.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        try:
            with reading(self.path), open_file(self.path) as file:
                self._bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except ValueError as error:
            raise UserError(f"{self.path} is empty.") from error
        reader = _Reader(self._bytes, self.path)
        tensors, pairs = reader.header()
        self.metadata = reader.table(pairs, reader.value)
        self.tensors = reader.positioned(
            reader.table(tensors, reader.tensor), self.metadata.get("general.alignment", _ALIGNMENT)
        )

    def blocks(self, name: str) -> NDArray[np.uint8]:
        """The bytes of a tensor as they are: its shape, with each row as its blocks' bytes. Nothing is copied."""
        info = self.tensors[name]
        flat = np.frombuffer(self._bytes, np.uint8, count=info.end - info.start, offset=info.start)
        return flat.reshape(*info.shape[:-1], -1)


_LENGTH = struct.Struct("<Q").unpack_from


class _Reader:
    """Walks through the header, never past its end."""

    def __init__(self, content: mmap.mmap, path: Path) -> None:
        self.content, self.path, self.size = content, path, len(content)
        self.position = 0

    def damaged(self, reason: str) -> UserError:
        return UserError(f"{self.path} is not a whole GGUF file: {reason}; copy or download it again.")

    def header(self) -> tuple[int, int]:
        if self.content[:4] != b"GGUF":
            raise UserError(f"{self.path} is not a GGUF file: it does not begin with GGUF.")
        self.position = 4
        version = self.number("<I")
        if version not in _VERSIONS:
            big_endian = "; it is big-endian" if version >> 24 in _VERSIONS else ""
            raise UserError(f"{self.path} is of GGUF version {version}, and only 2 and 3 can be read{big_endian}.")
        tensors, pairs = self.number("<Q"), self.number("<Q")
        self.require_bytes(pairs * _SMALLEST_PAIR, f"{pairs} pairs")
        self.require_bytes(tensors * _SMALLEST_TENSOR, f"{tensors} tensors")
        return tensors, pairs

    def table(self, count: int, read: Callable[[str], T]) -> dict[str, T]:
        """So many items, whose names must differ; `read` makes one, given its name."""
        items: dict[str, T] = {}
        for _ in range(count):
            name = self.text(_LONGEST_NAME)
            if name in items:
                raise self.damaged(f"{quote(name)} is there twice")
            items[name] = read(name)
        return items

    def value(self, key: str) -> Any:
        kind = self.number("<I")
        if kind == _STRING:
            return self.text()
        if kind == _ARRAY:
            return self.array(key)
        if kind not in _NUMBERS:
            raise self.damaged(f"the value of {quote(key)} is of the unknown type {kind}")
        number = self.number(_NUMBERS[kind])
        # The shortest decimal that is the same 32 bits: 1e-05, not 9.999999747378752e-06.
        return float(str(np.float32(number))) if kind == _FLOAT32 else number

    def array(self, key: str) -> list[str] | NDArray[Any]:
        """Numbers stay where they are in the file; texts become a list."""
        kind, count = self.number("<I"), self.number("<Q")
        if kind != _STRING and kind not in _NUMBERS:
            raise self.damaged(f"{quote(key)} is an array of the type {kind}, neither numbers nor texts")
        dtype = np.dtype(_NUMBERS.get(kind, "<Q"))  # of a text, at least its length
        self.require_bytes(dtype.itemsize * count, f"the {count} values of {quote(key)}")
        if kind == _STRING:
            return [self.text() for _ in range(count)]
        values: NDArray[Any] = np.frombuffer(self.content, dtype, count=count, offset=self.position)
        self.position += values.nbytes
        return values

    def tensor(self, name: str) -> TensorInfo:
        """The type and shape of a tensor; `start` counts from the beginning of the data."""
        dimensions = self.number("<I")
        if not 1 <= dimensions <= _MOST_DIMENSIONS:
            raise self.damaged(f"the tensor {quote(name)} has {dimensions} dimensions")
        shape = tuple(self.number("<Q") for _ in range(dimensions))[::-1]
        if min(shape) < 1:
            raise self.damaged(f"the tensor {quote(name)} has a dimension of size 0")
        kind = self.number("<I")
        if kind not in TYPES:
            raise UserError(f"{self.path}: the tensor {quote(name)} is of the type {kind}, which is not known.")
        return TensorInfo(shape, TYPES[kind], self.number("<Q"))

    def positioned(self, declared: Mapping[str, TensorInfo], alignment: Any) -> dict[str, TensorInfo]:
        """The tensors with `start` counted from the beginning of the file, none beyond its end or in another."""
        if not isinstance(alignment, int) or not 1 <= alignment <= _MOST_ALIGNMENT or alignment & (alignment - 1):
            raise self.damaged(f"the alignment {quote(alignment)} is not a power of two")
        begin = -(-self.position // alignment) * alignment
        tensors = {name: replace(info, start=begin + info.start) for name, info in declared.items()}
        for name, info in tensors.items():
            row, kind, offset = info.shape[-1], info.type, info.start - begin
            if row % kind.block:
                raise self.damaged(f"rows of {name} have {row} weights, not a multiple of {kind.name}'s {kind.block}")
            if offset % alignment:
                raise self.damaged(f"{name} lies at {offset}, which is not aligned to {alignment} bytes")
            if info.end > self.size:
                raise self.damaged(f"{name} ends at byte {info.end} of {self.size}")
        for (before, left), (name, right) in pairwise(sorted(tensors.items(), key=lambda item: item[1].start)):
            if right.start < left.end:
                raise self.damaged(f"{name} and {before} overlap")
        return tensors

    def text(self, longest: int | None = None) -> str:
        # A vocabulary is a hundred thousand of these, so nothing is called that isn't needed.
        self.require_bytes(8, "a number")
        (length,) = _LENGTH(self.content, self.position)
        start = self.position + 8
        self.position = end = start + length
        if end > self.size:
            self.position = start
            self.require_bytes(length, f"a text of {length} bytes")
        if longest is not None and length > longest:
            raise self.damaged(f"a name has {length} bytes")
        try:
            return self.content[start:end].decode("utf-8")
        except UnicodeDecodeError as error:
            raise self.damaged(f"the text at byte {start} is not UTF-8") from error

    def number(self, form: str) -> Any:
        length = struct.calcsize(form)
        self.require_bytes(length, "a number")
        (value,) = struct.unpack_from(form, self.content, self.position)
        self.position += length
        return value

    def require_bytes(self, length: int, what: str) -> None:
        if length > self.size - self.position:
            raise self.damaged(f"it ends at byte {self.size}, within {what}")
