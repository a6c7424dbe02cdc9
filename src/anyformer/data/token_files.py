"""Token files: the ids of a corpus, memory-mapped, in a file that explains itself.

bytes 0..4095   a JSON header, padded with spaces (see `Header`)
then            the ids, uint16 for vocabularies of at most 65,536 tokens, else uint32, little-endian
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self, cast

import numpy as np
import numpy.typing as npt

from anyformer import atomic
from anyformer.data.parallel_encoding import BatchEncoder, Ids, Lengths, chunks, encoded, id_dtype
from anyformer.data.sources import Document
from anyformer.errors import UserError

FORMAT = "anyformer-tokens-2"
HEADER = 4096

_TYPES: dict[str, np.dtype[Any]] = {"uint16": np.dtype("<u2"), "uint32": np.dtype("<u4")}


@dataclass(frozen=True, slots=True)
class Header:
    """What a token file says about itself.

    Attributes:
        dtype: `uint16` or `uint32`.
        tokens: number of ids, separators between documents included.
        bytes: length of the text in UTF-8, which turns a loss per token into bits per byte.
        documents: number of documents.
        vocab_size: of the tokenizer that wrote it.
        digest: SHA-256 of the ids, which names the content wherever the file is.
    """

    dtype: str
    tokens: int
    bytes: int
    documents: int
    vocab_size: int
    digest: str
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
        dtype = _TYPES[header.dtype]
        if size != HEADER + header.tokens * dtype.itemsize:
            raise UserError(f"The token file {where} is cut off or damaged: delete it to have it made anew.")
        if header.tokens == 0:
            return cls(where, header, np.zeros(0, dtype=dtype))
        return cls(where, header, np.memmap(where, dtype=dtype, mode="r", offset=HEADER))


class TokenWriter:
    """Writes a token file bit by bit. A context manager: it is whole once the context has ended without an error."""

    def __init__(self, path: Path, vocab_size: int) -> None:
        self._path = path
        self._vocab_size = vocab_size
        self.dtype = id_dtype(vocab_size)
        self._tokens = self._bytes = self._documents = 0
        self._hash = hashlib.sha256()

    def __enter__(self) -> Self:
        self._file: BinaryIO = self._path.open("wb")
        self._file.write(bytes(HEADER))
        return self

    def write(self, ids: Ids, *, size: int, documents: int) -> None:
        """Add ids.

        Args:
            ids: [tokens] of `dtype`.
            size: number of bytes of their text.
            documents: number of documents that end in it.
        """
        content = np.ascontiguousarray(ids, dtype=self.dtype).tobytes()
        self._file.write(content)
        self._hash.update(content)
        self._tokens += len(ids)
        self._bytes += size
        self._documents += documents

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._file:
            if kind is None:
                name = self.dtype.newbyteorder("=").name
                header = Header(
                    name, self._tokens, self._bytes, self._documents, self._vocab_size, self._hash.hexdigest()
                )
                self._file.seek(0)
                self._file.write(_render(header))
                self._file.flush()
                os.fsync(self._file.fileno())


def tokenize(
    documents: Iterable[Document],
    tokenizer: BatchEncoder,
    path: str | os.PathLike[str],
    *,
    workers: int | None = 1,
    progress: Callable[[int], None] | None = None,
) -> TokenFile:
    """Write the ids of documents to a token file, the tokenizer's separator between documents.

    Memory stays bounded: each worker holds about a quarter of a million characters at a time.

    Args:
        documents: read once, in order.
        tokenizer: texts are encoded without the special tokens around them.
        path: the file to make; what was there stays until the new one is whole.
        workers: processes, None for one per core. The file does not depend on it.
        progress: called with the number of characters done since its last call.

    Raises:
        UserError: the file can't be written, or a document can't be read or encoded.
    """
    where = Path(path)
    labeled = (("", document) for document in documents)
    with atomic.replacing(where, make_parents=True) as temporary:
        tokenize_splits(labeled, tokenizer, {"": temporary}, workers=workers, progress=progress)
    return TokenFile.open(where)


def tokenize_splits(
    documents: Iterable[tuple[str, Document]],
    tokenizer: BatchEncoder,
    paths: Mapping[str, Path],
    *,
    workers: int | None = 1,
    progress: Callable[[int], None] | None = None,
) -> None:
    """Write documents, each with the name of the split it belongs to, to the token file of that split.

    Args:
        documents: read once, in order.
        tokenizer: texts are encoded without the special tokens around them.
        paths: the token file of each split.
        workers: processes, None for one per core.
        progress: called with the number of characters done since its last call.

    Raises:
        UserError: a document can't be read or encoded.
        OSError: a file can't be written.
    """
    between = dict.fromkeys(paths, False)
    with ExitStack() as stack:
        writers = {name: stack.enter_context(TokenWriter(path, tokenizer.vocab_size)) for name, path in paths.items()}
        groups = chunks(documents, lambda item: len(item[1].text))
        for group, (lengths, ids) in encoded(groups, _texts, tokenizer, workers):
            for name, writer in writers.items():
                mine = [document for split, document in group if split == name]
                if mine:
                    chosen = np.fromiter((split == name for split, _ in group), np.bool_, len(group))
                    last = np.fromiter((document.last for document in mine), np.bool_, len(mine))
                    own = ids if len(mine) == len(group) else ids[np.repeat(chosen, lengths)]
                    own = _separated(own, lengths[chosen], last, between[name], tokenizer.separator)
                    between[name] = bool(last[-1])
                    size = sum(utf8_length(document.text) for document in mine)
                    writer.write(own, size=size, documents=int(last.sum()))
            if progress is not None:
                progress(sum(len(document.text) for _, document in group))


def _texts(group: list[tuple[str, Document]]) -> list[str]:
    return [document.text for _, document in group]


def _separated(ids: Ids, lengths: Lengths, last: npt.NDArray[np.bool_], between: bool, separator: int | None) -> Ids:
    """Put the separator before each text whose predecessor ended; `between` says it of the one before the first."""
    if separator is None:
        return ids
    starts = np.concatenate(([0], np.cumsum(lengths[:-1], dtype=np.int64)))
    ended = np.concatenate(([between], last[:-1]))
    return np.insert(ids, starts[ended], separator)


def utf8_length(text: str) -> int:
    """The length of a text in UTF-8."""
    return len(text) if text.isascii() else len(text.encode("utf-8"))


def _render(header: Header) -> bytes:
    content = json.dumps(asdict(header)).encode()
    return content.ljust(HEADER - 1) + b"\n"


def _parse(content: bytes) -> Header:
    header = Header(**cast("dict[str, Any]", json.loads(content)))
    if header.format != FORMAT or header.dtype not in _TYPES:
        raise ValueError("another format")
    return header
