"""Token files: the ids of a corpus, memory-mapped, in a file that explains itself.

    bytes 0..4095   a JSON header, padded with spaces: format, dtype, tokens, bytes, documents, vocab_size,
    fingerprint then            the ids, uint16 for vocabularies of at most 65,536 tokens, else uint32,
    little-endian

One file, written beside its place and renamed into it, so it is whole or absent.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol, cast

import numpy as np
import numpy.typing as npt

from anyformer.data.sources import Document
from anyformer.errors import UserError

FORMAT = "anyformer-tokens-1"
HEADER = 4096
Ids = npt.NDArray[np.uint16] | npt.NDArray[np.uint32]

_CHARACTERS_AT_ONCE = 1 << 20


class Encodes(Protocol):
    """What tokenising needs of a tokenizer."""

    @property
    def vocab_size(self) -> int:
        """Number of tokens."""
        ...

    @property
    def separator(self) -> int | None:
        """The id between documents, None for none."""
        ...

    @property
    def fingerprint(self) -> str:
        """A hash that changes whenever the ids could."""
        ...

    def encode_batch(self, texts: Sequence[str], special: bool = True) -> list[list[int]]:
        """Return the ids of each text."""
        ...


@dataclass(frozen=True, slots=True)
class Header:
    """What a token file says about itself.

    Attributes:
        dtype: `uint16` or `uint32`.
        tokens: number of ids, separators between documents included.
        bytes: length of the text in UTF-8, which turns a loss per token into bits per byte.
        documents: number of documents.
        vocab_size: of the tokenizer that wrote it.
        fingerprint: of the sources and the tokenizer, "" where the writer gave none.
    """

    dtype: str
    tokens: int
    bytes: int
    documents: int
    vocab_size: int
    fingerprint: str
    format: str = FORMAT


@dataclass(frozen=True, slots=True)
class TokenFile:
    """An open token file: its header and its ids, read from disk as they are used.

    Attributes:
        ids: [tokens], read-only.
    """

    path: Path
    header: Header
    ids: Ids

    def __len__(self) -> int:
        """Number of ids."""
        return self.header.tokens

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> TokenFile:
        """Open a token file; raises UserError when it is missing, damaged or something else."""
        where = Path(path)
        try:
            with where.open("rb") as file:
                header = _parse(file.read(HEADER))
            size = where.stat().st_size
        except (ValueError, TypeError, KeyError) as error:
            raise UserError(f"{where} is not a token file of this version: delete it to have it made anew.") from error
        except OSError as error:
            raise UserError(f"The token file {where} can't be read: {error.strerror or error}.") from error
        dtype = np.dtype(header.dtype).newbyteorder("<")
        if size != HEADER + header.tokens * dtype.itemsize:
            raise UserError(f"The token file {where} is cut off or damaged: delete it to have it made anew.")
        if header.tokens == 0:
            return cls(where, header, np.zeros(0, dtype=dtype))
        return cls(where, header, np.memmap(where, dtype=dtype, mode="r", offset=HEADER))


def fingerprint(files: Iterable[Path], tokenizer: Encodes, part: str = "") -> str:
    """Return a hash of what decides a token file's content, without reading the sources.

    Args:
        files: the sources; their names, sizes and times of change count.
        tokenizer: its own fingerprint counts.
        part: which part of the sources it is, such as "training".
    """
    facts = [FORMAT, part, tokenizer.fingerprint]
    for path in files:
        status = path.stat()
        facts.append(f"{path.absolute()}:{status.st_size}:{status.st_mtime_ns}")
    return hashlib.sha256("\n".join(facts).encode("utf-8", "surrogateescape")).hexdigest()


def tokenise(
    documents: Iterable[Document],
    tokenizer: Encodes,
    path: str | os.PathLike[str],
    *,
    fingerprint: str = "",
    progress: Callable[[int], None] | None = None,
) -> TokenFile:
    """Write the ids of documents to a token file, the tokenizer's separator between documents.

    Memory stays bounded: about a million characters are encoded at a time.

    Args:
        documents: read once, in order.
        tokenizer: texts are encoded without the special tokens around them.
        path: the file to make; what was there stays until the new one is whole.
        fingerprint: kept in the header (see `fingerprint`).
        progress: called with the number of characters done since its last call.

    Raises:
        UserError: the file can't be written, or a document can't be read or encoded.
    """
    where = Path(path)
    beside = where.with_name(f".{where.name}.{os.getpid()}.tmp")
    try:
        where.parent.mkdir(parents=True, exist_ok=True)
        with beside.open("wb") as file:
            header = _write(file, documents, tokenizer, fingerprint, progress or _silent)
            file.seek(0)
            file.write(_render(header))
            file.flush()
            os.fsync(file.fileno())
        beside.replace(where)
    except OSError as error:
        raise UserError(f"The token file {where} can't be written: {error.strerror or error}.") from error
    finally:
        beside.unlink(missing_ok=True)
    return TokenFile.open(where)


def _write(
    file: BinaryIO,
    documents: Iterable[Document],
    tokenizer: Encodes,
    fingerprint: str,
    progress: Callable[[int], None],
) -> Header:
    narrow = tokenizer.vocab_size <= np.iinfo(np.uint16).max + 1
    dtype = np.dtype("<u2" if narrow else "<u4")
    separator = tokenizer.separator
    tokens = size = count = 0
    between = False
    file.write(bytes(HEADER))
    for batch in _batches(documents):
        encoded = tokenizer.encode_batch([document.text for document in batch], special=False)
        ids: list[int] = []
        for document, own in zip(batch, encoded, strict=True):
            if between and separator is not None:
                ids.append(separator)
            ids += own
            between = document.last
            size += len(document.text.encode("utf-8"))
            count += document.last
        file.write(np.asarray(ids, dtype=dtype).tobytes())
        tokens += len(ids)
        progress(sum(len(document.text) for document in batch))
    name = "uint16" if narrow else "uint32"
    return Header(name, tokens, size, count, tokenizer.vocab_size, fingerprint)


def _batches(documents: Iterable[Document]) -> Iterator[list[Document]]:
    batch: list[Document] = []
    characters = 0
    for document in documents:
        batch.append(document)
        characters += len(document.text)
        if characters >= _CHARACTERS_AT_ONCE:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _render(header: Header) -> bytes:
    content = json.dumps(asdict(header)).encode()
    if len(content) >= HEADER:
        raise ValueError(f"a token file's header has {len(content)} bytes, {HEADER} at most")
    return content.ljust(HEADER - 1) + b"\n"


def _parse(content: bytes) -> Header:
    header = Header(**cast("dict[str, Any]", json.loads(content)))
    if header.format != FORMAT or header.dtype not in ("uint16", "uint32"):
        raise ValueError("another format")
    return header


def _silent(characters: int) -> None:
    del characters
