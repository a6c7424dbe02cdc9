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
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from anyformer.errors import UserError

MAGIC = b"GGUF"
VERSIONS = (2, 3)
ALIGNMENT = 32
_MOST_ALIGNMENT = 2**20
_MOST_DIMENSIONS = 4
_LONGEST_NAME = 2**16
_SMALLEST_PAIR = 8 + 4 + 1
_SMALLEST_TENSOR = 8 + 4 + 8 + 4 + 8

T = TypeVar("T")

_STRING, _ARRAY = 8, 9
NUMBERS: Mapping[int, tuple[str, str]] = {
    0: ("B", "<u1"),
    1: ("b", "<i1"),
    2: ("<H", "<u2"),
    3: ("<h", "<i2"),
    4: ("<I", "<u4"),
    5: ("<i", "<i4"),
    6: ("<f", "<f4"),
    7: ("?", "?"),
    10: ("<Q", "<u8"),
    11: ("<q", "<i8"),
    12: ("<d", "<f8"),
}
"""Types of values: how struct and numpy call them."""
_FLOAT32 = 6


@dataclass(frozen=True)
class TensorType:
    """One format."""

    number: int
    name: str
    block: int
    """Weights in a block, which share their scales; a row is a whole number of blocks."""
    bytes: int
    """Bytes of a block."""


_SIZES = [
    (0, "F32", 1, 4),
    (1, "F16", 1, 2),
    (2, "Q4_0", 32, 18),
    (3, "Q4_1", 32, 20),
    (6, "Q5_0", 32, 22),
    (7, "Q5_1", 32, 24),
    (8, "Q8_0", 32, 34),
    (9, "Q8_1", 32, 40),
    (10, "Q2_K", 256, 84),
    (11, "Q3_K", 256, 110),
    (12, "Q4_K", 256, 144),
    (13, "Q5_K", 256, 176),
    (14, "Q6_K", 256, 210),
    (15, "Q8_K", 256, 292),
    (16, "IQ2_XXS", 256, 66),
    (17, "IQ2_XS", 256, 74),
    (18, "IQ3_XXS", 256, 98),
    (19, "IQ1_S", 256, 50),
    (20, "IQ4_NL", 32, 18),
    (21, "IQ3_S", 256, 110),
    (22, "IQ2_S", 256, 82),
    (23, "IQ4_XS", 256, 136),
    (24, "I8", 1, 1),
    (25, "I16", 1, 2),
    (26, "I32", 1, 4),
    (27, "I64", 1, 8),
    (28, "F64", 1, 8),
    (29, "IQ1_M", 256, 56),
    (30, "BF16", 1, 2),
    (34, "TQ1_0", 256, 54),
    (35, "TQ2_0", 256, 66),
    (39, "MXFP4", 32, 17),
    (40, "NVFP4", 64, 36),
    (41, "Q1_0", 128, 18),
]

TYPES: Mapping[int, TensorType] = {row[0]: TensorType(*row) for row in _SIZES}
"""By number."""
NAMED: Mapping[str, TensorType] = {kind.name: kind for kind in TYPES.values()}
"""By name."""


@dataclass(frozen=True)
class TensorInfo:
    """Where a tensor lies and what it is."""

    shape: tuple[int, ...]
    """The slowest dimension first, as in torch; the file lists them the other way round."""
    type: TensorType
    start: int
    """First byte in the file."""
    size: int
    """Bytes."""


class Container:
    """An open GGUF file.

    Attributes:
        path: The file.
        metadata: Key -> number, bool, text, list of texts, or array of numbers.
        tensors: Name -> place, in the file's order.

    Raises:
        UserError: not a GGUF file, one that is cut off or damaged, or of a version or type that is not known.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._bytes = _map(self.path)
        reader = _Reader(self._bytes, self.path)
        count, pairs = reader.header()
        self.metadata = dict(reader.unique(reader.pair() for _ in range(pairs)))
        declared = dict(reader.unique(reader.tensor() for _ in range(count)))
        self.tensors = _placed(declared, reader, _alignment(self.metadata, reader))

    def blocks(self, name: str) -> NDArray[np.uint8]:
        """The bytes of a tensor as they are: its shape, with each row as its blocks' bytes. Nothing is copied."""
        info = self.tensors[name]
        flat = np.frombuffer(self._bytes, np.uint8, count=info.size, offset=info.start)
        return flat.reshape(*info.shape[:-1], -1)


def _map(path: Path) -> mmap.mmap:
    try:
        with path.open("rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise UserError(f"{path} can't be read: {error.strerror or error}.") from error
    except ValueError as error:
        raise UserError(f"{path} is empty.") from error


def _alignment(metadata: Mapping[str, Any], reader: "_Reader") -> int:
    value = metadata.get("general.alignment", ALIGNMENT)
    if not isinstance(value, int) or not 1 <= value <= _MOST_ALIGNMENT or value & (value - 1):
        raise reader.damaged(f"the alignment {str(value)[:40]} is not a power of two")
    return value


def _placed(
    declared: Mapping[str, tuple[tuple[int, ...], TensorType, int]], reader: "_Reader", alignment: int
) -> dict[str, TensorInfo]:
    """The tensors with their place in the file, which is theirs alone."""
    begin = -(-reader.position // alignment) * alignment
    placed: dict[str, TensorInfo] = {}
    for name, (shape, kind, offset) in declared.items():
        if shape[-1] % kind.block:
            raise reader.damaged(
                f"rows of {name} have {shape[-1]} weights, not a multiple of {kind.name}'s {kind.block}"
            )
        info = TensorInfo(shape, kind, begin + offset, prod(shape) // kind.block * kind.bytes)
        if offset % alignment:
            raise reader.damaged(f"{name} lies at {offset}, which is not aligned to {alignment} bytes")
        if info.start + info.size > reader.size:
            raise reader.damaged(f"{name} ends at byte {info.start + info.size} of {reader.size}")
        placed[name] = info
    end, before = 0, ""
    for name, info in sorted(placed.items(), key=lambda item: item[1].start):
        if info.start < end:
            raise reader.damaged(f"{name} and {before} overlap")
        end, before = info.start + info.size, name
    return placed


class _Reader:
    """Walks through the header, never past its end."""

    def __init__(self, content: mmap.mmap, path: Path) -> None:
        self.content, self.path, self.size = content, path, len(content)
        self.position = 0

    def damaged(self, reason: str) -> UserError:
        return UserError(f"{self.path} is not a whole GGUF file: {reason}; copy or download it again.")

    def header(self) -> tuple[int, int]:
        """The numbers of tensors and of pairs."""
        if self.content[:4] != MAGIC:
            raise UserError(f"{self.path} is not a GGUF file: it does not begin with GGUF.")
        self.position = 4
        version = self.integer("<I")
        if version not in VERSIONS:
            big_endian = "; it is big-endian" if version >> 24 in VERSIONS else ""
            raise UserError(f"{self.path} is of GGUF version {version}, and only 2 and 3 can be read{big_endian}.")
        tensors, pairs = self.integer("<Q"), self.integer("<Q")
        for count, smallest, what in ((pairs, _SMALLEST_PAIR, "pairs"), (tensors, _SMALLEST_TENSOR, "tensors")):
            self.require_bytes(count * smallest, f"{count} {what}")
        return tensors, pairs

    def unique(self, items: Iterator[tuple[str, T]]) -> Iterator[tuple[str, T]]:
        """The items, whose names must differ."""
        seen: set[str] = set()
        for name, value in items:
            if name in seen:
                raise self.damaged(f"{name[:80]!r} is there twice")
            seen.add(name)
            yield name, value

    def pair(self) -> tuple[str, Any]:
        """A key and its value."""
        key = self.text(_LONGEST_NAME)
        return key, self.value(self.integer("<I"), key)

    def value(self, kind: int, key: str) -> Any:
        """A value of this type."""
        if kind == _STRING:
            return self.text()
        if kind == _ARRAY:
            return self.array(key)
        if kind not in NUMBERS:
            raise self.damaged(f"the value of {key[:80]!r} is of the unknown type {kind}")
        number = self.number(NUMBERS[kind][0])
        # The shortest decimal that is the same 32 bits: 1e-05, not 9.999999747378752e-06.
        return float(str(np.float32(number))) if kind == _FLOAT32 else number

    def array(self, key: str) -> list[str] | NDArray[Any]:
        """Numbers stay where they are in the file; texts become a list."""
        kind, count = self.integer("<I"), self.integer("<Q")
        what = f"the {count} values of {key[:80]!r}"
        if kind == _STRING:
            self.require_bytes(8 * count, what)
            return [self.text() for _ in range(count)]
        if kind not in NUMBERS:
            raise self.damaged(f"{key[:80]!r} is an array of the type {kind}, neither numbers nor texts")
        dtype = np.dtype(NUMBERS[kind][1])
        self.require_bytes(dtype.itemsize * count, what)
        values: NDArray[Any] = np.frombuffer(self.content, dtype, count=count, offset=self.position)
        self.position += values.nbytes
        return values

    def tensor(self) -> tuple[str, tuple[tuple[int, ...], TensorType, int]]:
        """A tensor's name, shape, type and offset."""
        name = self.text(_LONGEST_NAME)
        dimensions = self.integer("<I")
        if not 1 <= dimensions <= _MOST_DIMENSIONS:
            raise self.damaged(f"the tensor {name[:80]!r} has {dimensions} dimensions")
        shape = tuple(self.integer("<Q") for _ in range(dimensions))[::-1]
        if min(shape) < 1:
            raise self.damaged(f"the tensor {name[:80]!r} has a dimension of size 0")
        kind = self.integer("<I")
        if kind not in TYPES:
            raise UserError(f"{self.path}: the tensor {name[:80]!r} is of the type {kind}, which is not known.")
        return name, (shape, TYPES[kind], self.integer("<Q"))

    def text(self, longest: int | None = None) -> str:
        """A string."""
        length = self.integer("<Q")
        self.require_bytes(length, f"a text of {length} bytes")
        if longest is not None and length > longest:
            raise self.damaged(f"a name has {length} bytes")
        start, self.position = self.position, self.position + length
        try:
            return self.content[start : self.position].decode("utf-8")
        except UnicodeDecodeError as error:
            raise self.damaged(f"the text at byte {start} is not UTF-8") from error

    def integer(self, form: str) -> int:
        """One integer."""
        return cast("int", self.number(form))

    def number(self, form: str) -> int | float | bool:
        """One number."""
        length = struct.calcsize(form)
        self.require_bytes(length, "a number")
        (value,) = struct.unpack_from(form, self.content, self.position)
        self.position += length
        return value

    def require_bytes(self, length: int, what: str) -> None:
        """Raise UserError unless so many bytes are left."""
        if length > self.size - self.position:
            raise self.damaged(f"it ends at byte {self.size}, within {what}")
