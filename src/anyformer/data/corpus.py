"""The split of a corpus into training and validation, the same on every machine.

A corpus of fewer than `MIN_DOCUMENTS` documents is split by position, as nanoGPT splits its one: the first 90% of the
characters of all documents in order are for training, the rest for validation. A larger one is split by document, since
the last files of a folder are seldom like the others: documents are taken in the order of a hash of their relative path
(and line), each that still fits into 10% of the characters, and those are for validation.
"""

from __future__ import annotations

import hashlib
import os
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from anyformer import limits
from anyformer.data.input_files import Paths, find_files
from anyformer.data.sources import Document, documents
from anyformer.errors import UserError

MIN_DOCUMENTS = 20
"""From this number of documents on, the split is by document."""

VALIDATION_FRACTION = 0.1
"""Share of the characters that is held out for validation."""

Bool = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Split:
    """How much there is, and what of it is held out.

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

    def save(self, path: Path) -> None:
        """Write it to a .npz file."""
        held_out = np.zeros(0, np.uint8) if self.held_out is None else np.packbits(self.held_out)
        facts = np.array([self.characters, self.count, self.dropped, self.held_out is not None], np.int64)
        np.savez(path, facts=facts, chosen=held_out)

    @classmethod
    def load(cls, path: Path) -> Split:
        """Read what `save` wrote; raises UserError when it is missing or damaged."""
        try:
            with np.load(path, allow_pickle=False) as kept:
                characters, count, dropped, by_document = map(int, kept["facts"])
                chosen = kept["chosen"]
                if min(characters, count, dropped) < 0 or (by_document and not 0 <= 8 * len(chosen) - count < 8):
                    raise ValueError("its numbers contradict each other")
                held_out = np.unpackbits(chosen, count=count).astype(np.bool_) if by_document else None
        except Exception as error:  # numpy raises many kinds for a file of somebody else's, MemoryError among them
            raise UserError(f"{path} can't be read ({error}): delete its folder to have it made anew.") from error
        return cls(characters, count, dropped, held_out)


class Corpus:
    """The documents of files and folders, split into training and validation.

    Attributes:
        files: the files it reads, in order.
        split: how much there is, and what of it is held out.
    """

    def __init__(
        self,
        paths: Paths,
        field: str = "text",
        split: Split | None = None,
        *,
        max_record_bytes: int = limits.RECORD_BYTES,
    ) -> None:
        """Read all the data once, to find every fault in it; nothing is read where the split is known.

        Raises:
            UserError: as `documents` does.
        """
        self.files = find_files(paths)
        self._field, self._max_record_bytes = field, max_record_bytes
        self.split = Split.by_hash(self.files, self._sizes()) if split is None else split

    def __iter__(self) -> Iterator[Document]:
        """All documents."""
        return documents(self.files, self._field, max_record_bytes=self._max_record_bytes)

    def training(self) -> Iterator[Document]:
        """The documents to train on."""
        return (document for held_out, document in self.labeled() if not held_out)

    def validation(self) -> Iterator[Document]:
        """The documents held out. Never empty unless the corpus is a single character."""
        return (document for held_out, document in self.labeled() if held_out)

    def labeled(self) -> Iterator[tuple[bool, Document]]:
        """All documents in order, each with whether it is held out; one that the split cuts comes in two."""
        held_out = self.split.held_out
        limit = int((1 - VALIDATION_FRACTION) * self.split.characters)
        position = index = 0
        for document in self:
            if held_out is not None:
                if index >= len(held_out):
                    raise UserError(f"The data changed while it was being read: {document.path} is new.")
                yield bool(held_out[index]), document
            else:
                start, position = position, position + len(document.text)
                cut = min(max(limit - start, 0), len(document.text))
                if cut:
                    # the part before the cut ends here, although its document goes on
                    last = document.last or start + cut == limit
                    yield False, replace(document, text=document.text[:cut], last=last)
                if cut < len(document.text):
                    yield True, replace(document, text=document.text[cut:])
            index += document.last

    def _sizes(self) -> Iterator[tuple[Path, int | None, int]]:
        size = 0
        for document in self:
            size += len(document.text)
            if document.last:
                yield document.path, document.line, size
                size = 0
