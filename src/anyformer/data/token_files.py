"""Token files: the ids of a corpus, memory-mapped, in a file that explains itself.

bytes 0..4095   a JSON header, padded with spaces (see `Header`)
then            the ids, uint16 for vocabularies of at most 65,536 tokens, else uint32, little-endian
"""

from __future__ import annotations

import hashlib
import json
import os
from array import array
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
import numpy.typing as npt

from anyformer import atomic, limits, processes
from anyformer.config.parts import Size
from anyformer.data.documents import Document
from anyformer.data.formats import utf8_length
from anyformer.errors import UserError
from anyformer.schema import make
from anyformer.tokenizer import Tokenizer

FORMAT: Literal["anyformer-tokens-2"] = "anyformer-tokens-2"
HEADER = 4096
CHUNK = 1 << 18
"""Characters that are encoded at a time: a fraction of a second's work, and little memory."""
_BLOCK = 1 << 20

Width = Literal["uint16", "uint32"]
_DTYPES: Mapping[Width, np.dtype[Any]] = {"uint16": np.dtype("<u2"), "uint32": np.dtype("<u4")}

Ids = npt.NDArray[np.uint16 | np.uint32]
Lengths = npt.NDArray[np.uint32]
Chunk = list[tuple[str, Document]]
"""Documents, each with the name of the split it belongs to."""


@dataclass(frozen=True, slots=True)
class Header:
    """The header of a token file.

    Attributes:
        dtype: `uint16` or `uint32`.
        tokens: number of ids, separators between documents included.
        bytes: length of the text in UTF-8, which turns a loss per token into bits per byte.
        vocab_size: of the tokenizer that wrote it.
        digest: SHA-256 of the ids, which names the content wherever the file is.
    """

    dtype: Width
    tokens: Size
    bytes: Size
    documents: Size
    vocab_size: Size
    digest: str
    format: Literal["anyformer-tokens-2"] = FORMAT


@dataclass(frozen=True, slots=True)
class TokenFile:
    """An open token file, whose ids are read from disk as they are used."""

    path: Path
    header: Header
    ids: Ids
    """[tokens], read-only."""

    def __len__(self) -> int:
        return self.header.tokens

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> TokenFile:
        """Open a token file; raises UserError when it is missing, damaged or something else."""
        path = Path(path)
        try:
            with limits.open_file(path) as file:
                header = make(Header, limits.parse_object(file.read(HEADER), path))
                size = os.fstat(file.fileno()).st_size
        except UserError as error:
            raise UserError(f"{path} is not a token file of this version: delete it to have it made anew.") from error
        except OSError as error:
            raise UserError(f"The token file {path} can't be read: {error.strerror or error}.") from error
        dtype = _DTYPES[header.dtype]
        if size != HEADER + header.tokens * dtype.itemsize:
            raise UserError(f"The token file {path} is cut off or damaged: delete it to have it made anew.")
        if header.tokens == 0:
            return cls(path, header, np.zeros(0, dtype=dtype))
        return cls(path, header, np.memmap(path, dtype=dtype, mode="r", offset=HEADER))


def tokenize(
    documents: Iterable[Document],
    tokenizer: Tokenizer,
    path: str | os.PathLike[str],
    *,
    workers: int | None = 1,
    progress: Callable[[int], None] | None = None,
) -> TokenFile:
    """Write the ids of documents to a token file, the tokenizer's separator between documents.

    Memory stays bounded: each worker holds about a quarter of a million characters at a time.

    Args:
        tokenizer: texts are encoded without the special tokens around them.
        path: the file to make; what was there stays until the new one is complete.
        workers: threads, None for one per core. The file does not depend on it.
        progress: called with the number of characters done since its last call.

    Raises:
        UserError: the file can't be written, or a document can't be read or encoded.
    """
    path = Path(path)
    labeled = (("", document) for document in documents)
    with atomic.replacing(path, make_parents=True) as temporary:
        tokenize_splits(labeled, tokenizer, {"": temporary}, workers=workers, progress=progress)
        atomic.sync(temporary)
    return TokenFile.open(path)


def tokenize_splits(
    documents: Iterable[tuple[str, Document]],
    tokenizer: Tokenizer,
    paths: Mapping[str, Path],
    *,
    separate: bool = True,
    more: bool = False,
    workers: int | None = 1,
    progress: Callable[[int], None] | None = None,
) -> dict[str, Lengths]:
    """Write documents, each with the name of its split, to the token file of that split, as `tokenize` does.

    Args:
        separate: put the tokenizer's separator between documents.
        more: put it after the last document, too: `join` adds others.

    Returns:
        For each split the number of ids of each of its documents, without separators.

    Raises:
        UserError: a document can't be read or encoded.
        OSError: a file can't be written.
    """
    separator = tokenizer.separator if separate else None
    with ExitStack() as stack:
        writers = {
            name: _Writer(stack.enter_context(path.open("wb")), tokenizer.vocab_size, separator)
            for name, path in paths.items()
        }
        for chunk, lengths, ids in encode_chunks(documents, tokenizer, workers):
            for name, writer in writers.items():
                own = np.fromiter((split == name for split, _ in chunk), np.bool_, len(chunk))
                if own.any():
                    texts = [document for split, document in chunk if split == name]
                    writer.write(texts, lengths[own], ids[np.repeat(own, lengths)])
            if progress is not None:
                progress(sum(len(document.text) for _, document in chunk))
        return {name: writer.finish(more=more) for name, writer in writers.items()}


def encode_chunks(
    documents: Iterable[tuple[str, Document]], tokenizer: Tokenizer, workers: int | None = None
) -> Iterator[tuple[Chunk, Lengths, Ids]]:
    """Encode documents in chunks, in order, without the special tokens around a text.

    Each of so many threads encodes a chunk, which the library does beside Python's lock; the documents are read one
    chunk ahead of them, and no further.

    Yields:
        A chunk of the documents, the number of ids of each of them, and all their ids.

    Raises:
        UserError: a text can't be encoded.
    """
    workers, dtype = workers or processes.cores(), _DTYPES[_width(tokenizer.vocab_size)]

    def encode(chunk: Chunk) -> tuple[Chunk, Lengths, Ids]:
        ids = tokenizer.encode_batch([document.text for _, document in chunk], special=False)
        lengths = np.fromiter(map(len, ids), dtype=np.uint32, count=len(ids))
        return chunk, lengths, np.fromiter(chain.from_iterable(ids), dtype=dtype, count=int(lengths.sum()))

    with ThreadPoolExecutor(workers, thread_name_prefix="tokenize") as threads:
        pending = deque[Future[tuple[Chunk, Lengths, Ids]]]()
        for chunk in _chunks(documents):
            pending.append(threads.submit(encode, chunk))
            if len(pending) > workers:
                yield pending.popleft().result()
        for future in pending:
            yield future.result()


def _chunks(documents: Iterable[tuple[str, Document]]) -> Iterator[Chunk]:
    chunk, characters = Chunk(), 0
    for split, document in documents:
        chunk.append((split, document))
        characters += len(document.text)
        if characters >= CHUNK:
            yield chunk
            chunk, characters = [], 0
    if chunk:
        yield chunk


def _width(vocab_size: int) -> Width:
    """The dtype of stored ids: uint16 where it holds them all, else uint32."""
    return "uint16" if vocab_size <= 1 << 16 else "uint32"


def join(parts: Iterable[str | os.PathLike[str]], path: Path, separator: int | None) -> None:
    """Write the ids of token files, of which each was made with `more`, one after the other to a new token file.

    No more than two of them are mapped at a time: memory does not grow with their number.

    Args:
        separator: the one that they have after each document; the last is left out.

    Raises:
        UserError: one of them is missing or damaged.
        OSError: the file can't be written.
    """
    parts = [*parts]
    headers = [TokenFile.open(part).header for part in parts]
    ended = separator is not None and any(header.documents for header in headers)
    left = sum(header.tokens for header in headers) - ended
    with path.open("wb") as file:
        writer = _Writer(file, headers[0].vocab_size, None)
        for part in parts:
            ids = TokenFile.open(part).ids
            for start in range(0, len(ids), _BLOCK):
                block = ids[start : min(start + _BLOCK, len(ids), start + left)]
                writer.append(block)
                left -= len(block)
        writer.bytes = sum(header.bytes for header in headers)
        writer.documents = sum(header.documents for header in headers)
        writer.finish(more=False)


class _Writer:
    """Writes a token file bit by bit; `finish` makes it complete."""

    def __init__(self, file: BinaryIO, vocab_size: int, separator: int | None) -> None:
        self._file = file
        self._vocab_size = vocab_size
        self._separator = separator
        self._dtype = _DTYPES[_width(vocab_size)]
        self._lengths = array("I")
        self._tokens = self.bytes = self.documents = 0
        self._between = False
        self._hash = hashlib.sha256()
        file.write(bytes(HEADER))

    def write(self, documents: Sequence[Document], lengths: Lengths, ids: Ids) -> None:
        last = np.fromiter((document.last for document in documents), np.bool_, len(documents))
        if self._separator is not None:
            starts = np.cumsum(lengths, dtype=np.int64) - lengths
            ids = np.insert(ids, starts[np.append(self._between, last[:-1])], self._separator)
        self.append(ids)
        self._lengths.frombytes(lengths.tobytes())
        self.bytes += sum(utf8_length(document.text) for document in documents)
        self.documents += int(last.sum())
        self._between = bool(last[-1])

    def append(self, ids: Ids) -> None:
        content = np.ascontiguousarray(ids, dtype=self._dtype).tobytes()
        self._file.write(content)
        self._hash.update(content)
        self._tokens += len(ids)

    def finish(self, *, more: bool) -> Lengths:
        """Write the header; returns the number of ids of each document."""
        if more and self._between and self._separator is not None:
            self.append(np.array([self._separator], self._dtype))
        counts = self._tokens, self.bytes, self.documents, self._vocab_size
        header = Header(_width(self._vocab_size), *counts, self._hash.hexdigest())
        self._file.seek(0)
        self._file.write(json.dumps(asdict(header)).encode().ljust(HEADER - 1) + b"\n")
        return np.array(self._lengths, dtype=np.uint32)
