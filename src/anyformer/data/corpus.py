"""The split of a corpus into training and validation, the same on every machine.

A corpus of fewer than `MIN_DOCUMENTS` documents is split by position, as nanoGPT splits its one: the first 90% of the
characters of all documents in order are for training, the rest for validation. A larger one is split by document, since
the last files of a folder are seldom like the others: documents are taken in the order of a hash of their relative path
(and line), each that still fits into 10% of the characters, and those are for validation.
"""

from __future__ import annotations

import hashlib
import os
import zipfile
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from anyformer.data.sources import Document, Paths, documents, find_files
from anyformer.errors import UserError

MIN_DOCUMENTS = 20
"""From this number of documents on, the split is by document."""

VALIDATION_FRACTION = 0.1
"""Of the characters, held out for validation."""

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
                held_out = np.unpackbits(kept["chosen"], count=count).astype(np.bool_) if by_document else None
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise UserError(f"{path} can't be read ({error}): delete its folder to have it made anew.") from error
        return cls(characters, count, dropped, held_out)


class Corpus:
    """The documents of files and folders, split into training and validation.

    Making one reads all the data once, which finds every fault in it before anything is written; with a `split` that
    was kept from then, nothing is read.

    Attributes:
        files: the files it reads, in order.
        split: how much there is, and what of it is held out.
    """

    def __init__(self, paths: Paths, field: str = "text", split: Split | None = None) -> None:
        """Read the data once, unless the split is known. Raises UserError as `documents` does."""
        self.files = find_files(paths)
        self._field = field
        self.split = self._scan() if split is None else split

    @property
    def characters(self) -> int:
        """Number of characters in all."""
        return self.split.characters

    @property
    def count(self) -> int:
        """Number of documents."""
        return self.split.count

    def __iter__(self) -> Iterator[Document]:
        """All documents."""
        return documents(self.files, self._field)

    def training(self) -> Iterator[Document]:
        """The documents to train on."""
        return (document for held_out, document in self.parts() if not held_out)

    def validation(self) -> Iterator[Document]:
        """The documents held out. Never empty unless the corpus is a single character."""
        return (document for held_out, document in self.parts() if held_out)

    def parts(self) -> Iterator[tuple[bool, Document]]:
        """All documents in order, each with whether it is held out; one that the split cuts comes in two."""
        held_out = self.split.held_out
        limit = int((1 - VALIDATION_FRACTION) * self.characters)
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

    def _scan(self) -> Split:
        names = PathHasher(self.files)
        sizes, hashes = array("q"), array("Q")
        size = 0
        for document in self:
            size += len(document.text)
            if document.last:
                sizes.append(size)
                hashes.append(names.hash(document.path, document.line))
                size = 0
        held_out = choose_held_out(sizes, hashes) if len(sizes) >= MIN_DOCUMENTS else None
        return Split(sum(sizes), len(sizes), held_out=held_out)


class PathHasher:
    """PathHasher of files that are the same wherever the folder is that all of them share."""

    def __init__(self, files: Iterable[Path]) -> None:
        self._root = Path(os.path.commonpath([path.absolute().parent for path in files]))
        self._path: Path | None = None
        self._begun = hashlib.sha256()

    def hash(self, path: Path, line: int | None) -> int:
        """A number in [0, 2**64) for a line of a file."""
        if path != self._path:
            # Once a file and not once a line, which would take longer than reading it.
            name = path.absolute().relative_to(self._root).as_posix()
            self._path, self._begun = path, hashlib.sha256(f"{name}:".encode("utf-8", "surrogateescape"))
        own = self._begun.copy()
        own.update(str(line or 0).encode())
        return int.from_bytes(own.digest()[:8], "big")


def choose_held_out(sizes: Sequence[int], hashes: array[int]) -> Bool:
    """Mark what to hold out: in the order of the hashes, each that still fits into the share."""
    held_out = np.zeros(len(sizes), dtype=np.bool_)
    room = VALIDATION_FRACTION * float(sum(sizes))
    order = np.argsort(np.frombuffer(hashes, dtype=np.uint64), kind="stable")
    for index in map(int, order):
        if sizes[index] <= room:
            held_out[index] = True
            room -= sizes[index]
    return held_out
