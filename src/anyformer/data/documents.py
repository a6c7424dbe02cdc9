"""Documents of files, and the shards of a corpus, which are read apart from each other.

A document is a text file, or a field of one record: a line of jsonl, a row of csv, tsv or parquet. A text of more than
PIECE characters comes in several pieces, so that no file is ever in memory whole; a piece ends at a line end that is
followed by text, where tokenizers that split words never join.

A shard has about SHARD bytes: several files, or a stretch of a large one. Text is divided where pieces are, jsonl
between lines, parquet between row groups; other files, and compressed ones, are not. The pieces of a text depend on its
stretches, and these on nothing but the files: whoever reads a corpus, and in how many shards at a time, reads the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import BinaryIO

from anyformer import limits
from anyformer.data.formats import byte_lines, decoded
from anyformer.data.input_files import TEXT_SUFFIXES, WHOLE, Paths, Stretch, find_files, opened, stretch_of, suffix_of
from anyformer.data.rows import records, row_groups
from anyformer.errors import UserError

PIECE = 1 << 17
"""Characters that a piece has at most; a longer line is cut anyway."""
SHARD = 1 << 25
"""Bytes of a shard, about: ten seconds of work, so that many shards keep all processes busy to the end."""
_BLOCK = 1 << 20


@dataclass(frozen=True, slots=True)
class Document:
    """A text, or a piece of one, and its origin.

    Attributes:
        text: never empty.
        line: the line or row of a record, from 1; None for a text file.
        last: False when the next document continues this text.
    """

    text: str
    path: Path
    line: int | None = None
    last: bool = True

    def __len__(self) -> int:
        return len(self.text)


@dataclass(frozen=True, slots=True)
class Shard:
    """A part of a corpus, to be read by whoever has the files; iterating reads its documents.

    Attributes:
        stretches: of files, in order.
        field: of a record that holds the text; text files have no fields.
        max_record_bytes: the size that a record may have; that of text files is not limited.
    """

    stretches: tuple[tuple[Path, Stretch], ...]
    field: str = "text"
    max_record_bytes: int = limits.RECORD_BYTES

    def __iter__(self) -> Iterator[Document]:
        """Read the documents. Empty ones are passed over. Raises UserError as `documents`."""
        for path, stretch in self.stretches:
            if suffix_of(path) in TEXT_SUFFIXES:
                with opened(path) as file:
                    # A byte-order mark is at the beginning of a file alone.
                    text = decoded(stretch_of(file, stretch), "utf-8" if stretch.start else "utf-8-sig")
                    for piece, last in _pieces(text):
                        yield Document(piece, path, last=last and stretch.stop is None)
            else:
                for number, texts in records(path, (self.field,), self.max_record_bytes, stretch):
                    for piece, last in _pieces(texts):
                        yield Document(piece, path, number, last)


def shards(files: Iterable[Path], field: str = "text", max_record_bytes: int = limits.RECORD_BYTES) -> Iterator[Shard]:
    """Divide files, in order. Raises UserError for one that can't be read."""
    parts, size = list[tuple[Path, Stretch]](), 0
    for path in files:
        for stretch, length in _stretches(path, max_record_bytes):
            if parts and size + length > SHARD:
                yield Shard(tuple(parts), field, max_record_bytes)
                parts, size = [], 0
            parts.append((path, stretch))
            size += length
    if parts:
        yield Shard(tuple(parts), field, max_record_bytes)


def documents(paths: Paths, field: str = "text", *, max_record_bytes: int = limits.RECORD_BYTES) -> Iterator[Document]:
    """Read the documents of files, folders and globs (see `find_files`), in order. Empty ones are passed over.

    Args:
        field, max_record_bytes: see `Shard`.

    Raises:
        UserError: what `find_files` and `records` raise; a file that is not UTF-8 text (with the offset of the byte),
            or no text in any of the files.
    """
    files = find_files(paths)
    each = chain.from_iterable(shards(files, field, max_record_bytes))
    first = next(each, None)
    if first is None:
        raise no_text(files)
    yield first
    yield from each


def no_text(files: Sequence[Path]) -> UserError:
    """The error for files that are all empty."""
    which = f"{files[0]} is" if len(files) == 1 else f"all {len(files)} files, {files[0]} the first, are"
    return UserError(f"There is no text to read: {which} empty.")


def _stretches(path: Path, max_record_bytes: int) -> Iterator[tuple[Stretch, int]]:
    """The stretches of a file, each with about how many bytes it has; a file is read as far as they are asked for."""
    with limits.reading(path):
        size = path.stat().st_size
    lines = partial(_lines, longest=max_record_bytes)
    divide = {".parquet": _row_groups, ".jsonl": lines, **dict.fromkeys(TEXT_SUFFIXES, _texts)}.get(path.suffix.lower())
    if size <= SHARD or divide is None:
        yield WHOLE, size
        return
    begin, first, count = 0, 1, -(-size // SHARD)
    with opened(path) as file:
        for start, number in divide(file, path, size, count):
            yield Stretch(begin, start, first), size // count
            begin, first = start, number
    yield Stretch(begin, None, first), size // count


def _texts(file: BinaryIO, path: Path, size: int, count: int) -> Iterator[tuple[int, int]]:
    """The first line that begins with text, within a block, after each of so many parts of a file."""
    start = 0
    for number in range(1, count):
        start = max(start, size * number // count)
        file.seek(start)
        block, end = file.read(_BLOCK), 0
        while end := block.find(b"\n", end) + 1:
            following = block[end : end + 4].decode("utf-8", "ignore")[:1]
            if following and not following.isspace():
                start += end
                yield start, 1
                break


def _lines(file: BinaryIO, path: Path, size: int, count: int, longest: int) -> Iterator[tuple[int, int]]:
    """The first line after each of so many parts of a file, and its number; none after one that is too long to read."""
    position, line = 0, 1
    for number in range(1, count):
        end = size * number // count
        while position < end and (block := file.read(min(_BLOCK, end - position))):
            position += len(block)
            line += block.count(b"\n")
        rest = next(byte_lines(file, longest), b"")
        if len(rest) > longest and not rest.endswith(b"\n"):
            return
        position += len(rest)
        line += rest.endswith(b"\n")
        if position < size:
            yield position, line


def _row_groups(file: BinaryIO, path: Path, size: int, count: int) -> Iterator[tuple[int, int]]:
    """The first row group after each of so many parts of a file, and the number of its first row."""
    groups = row_groups(file, path)
    whole = sum(length for length, _ in groups)
    done, row, number = 0, 1, 1
    for index, (length, rows) in enumerate(groups):
        if index and done * count >= number * whole:
            yield index, row
            number = done * count // max(whole, 1) + 1
        done, row = done + length, row + rows


def _pieces(blocks: Iterable[str]) -> Iterator[tuple[str, bool]]:
    """Cut a text, which comes in blocks, into pieces, each with whether it is the last."""
    rest = ""
    for block in blocks:
        rest += block
        start = 0
        while len(rest) - start > PIECE:
            end = _end_of_piece(rest, start)
            yield rest[start:end], False
            start = end
        rest = rest[start:]
    if rest:
        yield rest, True


def _end_of_piece(text: str, start: int) -> int:
    """The position after the last line end within PIECE whose next line starts with text."""
    limit = start + PIECE
    end = text.rfind("\n", start, limit) + 1
    while end > start and text[end].isspace():
        end = text.rfind("\n", start, end - 1) + 1
    return end if end > start else limit
