"""Files and folders as documents, split into training and validation in the same way on every machine.

A document is a text file, or a field of one record: a line of jsonl, a row of csv, tsv or parquet. A text of more than
PIECE characters comes in several pieces, so that no file is ever in memory whole; a piece ends at a line end that is
followed by text, where tokenizers that split words never join.

A corpus of fewer than `MIN_DOCUMENTS` documents is split by position, as nanoGPT splits its one: the first 90% of the
characters of all documents in order are for training, the rest for validation. A larger one is split by document, since
the last files of a folder are seldom like the others: documents are taken in the order of a hash of their relative path
(and line), each that still fits into 10% of the characters, and those are for validation.
"""

from __future__ import annotations

import hashlib
import os
import sysconfig
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from anyformer import limits
from anyformer.data.formats.text import decoded
from anyformer.data.input_files import TEXT_SUFFIXES, Paths, find_files, opened, suffix_of, walk
from anyformer.data.rows import records
from anyformer.errors import UserError

PIECE = 1 << 17
"""Characters that a piece has at most; a longer line is cut anyway."""
MIN_DOCUMENTS = 20
"""From this number of documents on, the split is by document."""
VALIDATION_FRACTION = 0.1
"""Share of the characters that is held out for validation."""
_NOT_LIBRARY = frozenset({"site-packages", "dist-packages", "test", "tests", "idle_test", "turtledemo", "__pycache__"})

Bool = npt.NDArray[np.bool_]
_Item = TypeVar("_Item", bound=Any)


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


def documents(paths: Paths, field: str = "text", *, max_record_bytes: int = limits.RECORD_BYTES) -> Iterator[Document]:
    """Read the documents of files, folders and globs (see `find_files`), in order. Empty ones are passed over.

    Args:
        field: of a record that holds the text; text files have no fields.
        max_record_bytes: the size that a record may have; that of text files is not limited.

    Raises:
        UserError: what `find_files` and `records` raise; a file that is not UTF-8 text (with the offset of the byte),
            or no text in any of the files.
    """
    files = find_files(paths)
    each = chain.from_iterable(_read(path, field, max_record_bytes) for path in files)
    first = next(each, None)
    if first is None:
        which = f"{files[0]} is" if len(files) == 1 else f"all {len(files)} files, {files[0]} the first, are"
        raise UserError(f"There is no text to read: {which} empty.")
    yield first
    yield from each


def standard_library() -> list[Path]:
    """Return the Python source files of the running Python's standard library, without its tests, sorted.

    It is the corpus that every installation has: about 10 MB of well-kept text. Files that are not UTF-8 are left out.
    """
    root = Path(sysconfig.get_path("stdlib"))
    files = [path for path in walk(root, _NOT_LIBRARY) if path.suffix == ".py" and _is_text(path)]
    if not files:
        raise UserError(f"This Python has no source of its standard library in {root}: give a file with --data.")
    return files


def _is_text(path: Path) -> bool:
    try:
        path.read_bytes().decode("utf-8")
    except (OSError, UnicodeDecodeError):
        return False
    return True


def _read(path: Path, field: str, max_record_bytes: int) -> Iterator[Document]:
    if suffix_of(path) in TEXT_SUFFIXES:
        with opened(path) as file:
            for piece, last in _pieces(decoded(file)):
                yield Document(piece, path, last=last)
    else:
        for number, texts in records(path, (field,), max_record_bytes):
            for piece, last in _pieces(texts):
                yield Document(piece, path, number, last)


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


@dataclass(frozen=True, slots=True)
class Split:
    """The size of a corpus, and the documents or pairs of it that are held out.

    Attributes:
        characters: in all.
        count: number of documents, or of pairs.
        dropped: number of pairs that were left out because a side of them is empty.
        held_out: [count] True for what is held out; None where the split is by position.
    """

    characters: int
    count: int
    dropped: int = 0
    held_out: Bool | None = None

    @classmethod
    def by_hash(cls, files: Iterable[Path], sizes: Iterable[tuple[Path, int | None, int]]) -> Split:
        """Split documents in the order of a hash, if there are enough of them.

        Args:
            files: all that the documents are from; the hash depends only on paths relative to their common folder.
            sizes: path, line and number of characters of each document.
        """
        root = Path(os.path.commonpath([path.absolute().parent for path in files]))

        @lru_cache(maxsize=1)  # once a file and not once a line, which would take longer than reading it
        def path_hash(path: Path):
            name = path.absolute().relative_to(root).as_posix()
            return hashlib.sha256(f"{name}:".encode("utf-8", "surrogateescape"))

        characters, hashes = array("q"), array("Q")
        for path, line, size in sizes:
            own = path_hash(path).copy()
            own.update(str(line or 0).encode())
            characters.append(size)
            hashes.append(int.from_bytes(own.digest()[:8], "big"))
        if len(characters) < MIN_DOCUMENTS:
            return cls(sum(characters), len(characters))
        held_out = np.zeros(len(characters), dtype=np.bool_)
        room = VALIDATION_FRACTION * float(sum(characters))
        for index in map(int, np.argsort(np.frombuffer(hashes, dtype=np.uint64), kind="stable")):
            if characters[index] <= room:
                held_out[index] = True
                room -= characters[index]
        return cls(sum(characters), len(characters), held_out=held_out)

    def labeled(self, items: Iterable[_Item]) -> Iterator[tuple[bool, _Item]]:
        """Documents or pairs in order, each with whether it is held out; the split is not by position."""
        assert self.held_out is not None
        index = 0
        for item in items:
            if index >= len(self.held_out):
                line = "" if item.line is None else f"line {item.line} of "
                raise UserError(f"The data changed while it was being read: {line}{item.path} is new.")
            yield bool(self.held_out[index]), item
            index += item.last

    def save(self, path: Path) -> None:
        """Write it to a .npz file."""
        held_out = np.zeros(0, np.uint8) if self.held_out is None else np.packbits(self.held_out)
        facts = np.array([self.characters, self.count, self.dropped, self.held_out is not None], np.int64)
        np.savez(path, facts=facts, chosen=held_out)

    @classmethod
    def load(cls, path: Path) -> Split:
        """Read what `save` wrote; raises UserError when it is missing or damaged."""
        try:
            with np.load(path, allow_pickle=False) as content:
                characters, count, dropped, by_document = map(int, content["facts"])
                chosen = content["chosen"]
                if min(characters, count, dropped) < 0 or (by_document and not 0 <= 8 * len(chosen) - count < 8):
                    raise ValueError("its numbers contradict each other")
                held_out = np.unpackbits(chosen, count=count).astype(np.bool_) if by_document else None
        except Exception as error:  # numpy raises many kinds for a file of somebody else's, MemoryError among them
            raise UserError(f"{path} can't be read ({error}): delete its folder to have it made anew.") from error
        return cls(characters, count, dropped, held_out)


class Corpus:
    """The documents of files and folders, split into training and validation.

    Attributes:
        split: its size, and the documents that are held out.
    """

    def __init__(
        self,
        paths: Paths,
        field: str = "text",
        split: Split | None = None,
        *,
        max_record_bytes: int = limits.RECORD_BYTES,
    ) -> None:
        """Read all the data once, to find every fault in it; nothing is read where the split is given.

        Raises:
            UserError: as `documents` does.
        """
        self.files = find_files(paths)
        self._field, self._max_record_bytes = field, max_record_bytes
        self.split = Split.by_hash(self.files, self._sizes()) if split is None else split

    def __iter__(self) -> Iterator[Document]:
        return documents(self.files, self._field, max_record_bytes=self._max_record_bytes)

    def training(self) -> Iterator[Document]:
        """The documents to train on."""
        return (document for held_out, document in self.labeled() if not held_out)

    def validation(self) -> Iterator[Document]:
        """The documents held out. Never empty unless the corpus is a single character."""
        return (document for held_out, document in self.labeled() if held_out)

    def labeled(self) -> Iterator[tuple[bool, Document]]:
        """All documents in order, each with whether it is held out; one that the split cuts comes in two."""
        if self.split.held_out is not None:
            yield from self.split.labeled(self)
            return
        room = int((1 - VALIDATION_FRACTION) * self.split.characters)
        for document in self:
            text = document.text
            if room > 0:
                # the part before the cut ends here, although its document goes on
                yield False, replace(document, text=text[:room], last=document.last or room <= len(text))
            if room < len(text):
                yield True, replace(document, text=text[max(room, 0) :])
            room -= len(text)

    def _sizes(self) -> Iterator[tuple[Path, int | None, int]]:
        size = 0
        for document in self:
            size += len(document.text)
            if document.last:
                yield document.path, document.line, size
                size = 0
