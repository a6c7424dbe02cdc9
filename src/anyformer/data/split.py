"""The split of a corpus into training and validation, the same on every machine.

A corpus of few documents is split by position, as nanoGPT splits its one: the first 90% of the characters of
    all
documents in order are for training, the rest for validation. A corpus of MANY documents is split by document,
since the last files of a folder are seldom like the others: documents are taken in the order of a hash of
    their relative
path (and line), each that still fits into 10% of the characters, and those are for validation.
"""

from __future__ import annotations

import hashlib
import os
from array import array
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from anyformer.data.sources import Document, Paths, documents, find_files
from anyformer.errors import UserError

MANY = 20
"""From this number of documents on, the split is by document."""

_SHARE = 0.1


class Corpus:
    """The documents of files and folders, split into training and validation.

    Making one reads all the data once, which finds every fault in it before anything is written.

    Attributes:
        files: the files it reads, in order.
        characters: number of characters in all.
        count: number of documents.
    """

    def __init__(self, paths: Paths) -> None:
        """Read the data once. Raises UserError as `documents` does."""
        self.files = find_files(paths)
        self._root = Path(os.path.commonpath([path.absolute().parent for path in self.files]))
        sizes, hashes = array("q"), array("Q")
        size = 0
        for document in documents(self.files):
            size += len(document.text)
            if document.last:
                sizes.append(size)
                hashes.append(self._hash(document))
                size = 0
        self.count = len(sizes)
        self.characters = sum(sizes)
        self._chosen = _choose(sizes, hashes) if self.count >= MANY else None
        self._cut = int((1 - _SHARE) * self.characters)

    def __iter__(self) -> Iterator[Document]:
        """All documents."""
        return documents(self.files)

    def training(self) -> Iterator[Document]:
        """The documents to train on."""
        return self._part(validation=False)

    def validation(self) -> Iterator[Document]:
        """The documents held out. Never empty unless the corpus is a single character."""
        return self._part(validation=True)

    def name(self, path: Path) -> str:
        """A file's path relative to the folder that all of them share, the same wherever that folder is."""
        return path.absolute().relative_to(self._root).as_posix()

    def _hash(self, document: Document) -> int:
        name = f"{self.name(document.path)}:{document.line or 0}"
        return int.from_bytes(hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest()[:8], "big")

    def _part(self, *, validation: bool) -> Iterator[Document]:
        position = index = 0
        for document in self:
            if self._chosen is not None:
                if index >= len(self._chosen):
                    raise UserError(f"The data changed while it was being read: {document.path} is new.")
                if bool(self._chosen[index]) == validation:
                    yield document
            else:
                start, position = position, position + len(document.text)
                cut = min(max(self._cut - start, 0), len(document.text))
                text = document.text[cut:] if validation else document.text[:cut]
                if text:
                    # the part before the cut ends here, although its document goes on
                    yield replace(
                        document,
                        text=text,
                        last=document.last or (not validation and start + cut == self._cut),
                    )
            index += document.last


def _choose(sizes: array[int], hashes: array[int]) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """Mark the documents for validation: in the order of their hashes, each that fits into the share."""
    chosen = np.zeros(len(sizes), dtype=np.bool_)
    room = _SHARE * float(sum(sizes))
    order = np.argsort(np.frombuffer(hashes, dtype=np.uint64), kind="stable")
    for index in map(int, order):
        if sizes[index] <= room:
            chosen[index] = True
            room -= sizes[index]
    return chosen
