"""A corpus: documents split into training and validation in the same way on every machine.

A corpus of fewer than `MIN_DOCUMENTS` documents is split by position, as nanoGPT splits its one: the first 90% of the
characters of all documents in order are for training, the rest for validation. A larger one is split by document, since
the last files of a folder are seldom like the others: documents are taken in the order of a hash of their relative path
(and line), each that still fits into 10% of the characters, and those are for validation.
"""

from __future__ import annotations

import hashlib
import os
import sys
import sysconfig
from array import array
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from anyformer import limits
from anyformer.data.batch import Bool, Int64
from anyformer.data.documents import Document, Shard, documents, no_text, shards
from anyformer.data.input_files import Paths, find_files, walk
from anyformer.errors import UserError

MIN_DOCUMENTS = 20
"""From this number of documents on, the split is by document."""
VALIDATION_FRACTION = 0.1
"""Share of the characters that is held out for validation."""
_NOT_LIBRARY = frozenset({"site-packages", "dist-packages", "test", "tests", "idle_test", "turtledemo", "__pycache__"})

_Item = TypeVar("_Item", bound=Any)


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


class Sizes(NamedTuple):
    """The documents of a shard.

    Attributes:
        characters: [documents] of each; of one that begins or goes on in another shard the part that is in this one.
        hashes: [documents] of path and line, which decide what is held out.
        is_open: whether the last one goes on in the next shard.
    """

    characters: Int64
    hashes: npt.NDArray[np.uint64]
    is_open: bool = False

    @classmethod
    def of(cls, items: Iterable[Any], root: Path) -> Sizes:
        """Measure documents or pairs; hashes depend only on paths relative to the folder `root`."""

        @lru_cache(maxsize=1)  # once a file and not once a line, which would take longer than reading it
        def path_hash(path: Path):
            name = path.absolute().relative_to(root).as_posix()
            return hashlib.sha256(f"{name}:".encode("utf-8", "surrogateescape"))

        characters, hashes, is_open = array("q"), array("Q"), False
        for item in items:
            if is_open:
                characters[-1] += len(item)
            else:
                own = path_hash(item.path).copy()
                own.update(str(item.line or 0).encode())
                characters.append(len(item))
                hashes.append(int.from_bytes(own.digest()[:8], "big"))
            is_open = not item.last
        return cls(np.frombuffer(characters, np.int64), np.frombuffer(hashes, np.uint64), is_open)

    @classmethod
    def joined(cls, each: Iterable[Sizes]) -> tuple[Sizes, Int64]:
        """The sizes of shards together, and [shards, 2]: the documents and characters before each shard."""
        characters, hashes, before, is_open, total = array("q"), array("Q"), array("q"), False, 0
        for sizes in each:
            before.extend((len(characters) - is_open, total))
            if len(sizes.characters):
                if is_open:
                    characters[-1] += int(sizes.characters[0])
                characters.frombytes(sizes.characters[int(is_open) :].tobytes())
                hashes.frombytes(sizes.hashes[int(is_open) :].tobytes())
                is_open = sizes.is_open
            total += int(sizes.characters.sum())
        together = cls(np.frombuffer(characters, np.int64), np.frombuffer(hashes, np.uint64))
        return together, np.frombuffer(before, np.int64).reshape(-1, 2)


@dataclass(frozen=True, slots=True)
class Split:
    """The size of a corpus, and the documents or pairs of it that are held out.

    Attributes:
        characters: in all.
        count: number of documents, or of pairs.
        dropped: number of pairs that were left out because a side of them is empty.
        held_out: [count] True for what is held out; None where the split is by position.
        before: [shards, 2] the documents and characters before each shard of a corpus; None for pairs.
    """

    characters: int
    count: int
    dropped: int = 0
    held_out: Bool | None = None
    before: Int64 | None = None

    @classmethod
    def by_hash(cls, sizes: Sizes) -> Split:
        """Split documents in the order of a hash, if there are enough of them."""
        characters, total = sizes.characters, int(sizes.characters.sum())
        if len(characters) < MIN_DOCUMENTS:
            return cls(total, len(characters))
        held_out = np.zeros(len(characters), dtype=np.bool_)
        room = VALIDATION_FRACTION * float(total)
        for index in map(int, np.argsort(sizes.hashes, kind="stable")):
            if characters[index] <= room:
                held_out[index] = True
                room -= int(characters[index])
        return cls(total, len(characters), held_out=held_out)

    def save(self, path: Path) -> None:
        """Write it to a .npz file."""
        held_out = np.zeros(0, np.uint8) if self.held_out is None else np.packbits(self.held_out)
        before = np.zeros((0, 2), np.int64) if self.before is None else self.before
        facts = np.array([self.characters, self.count, self.dropped, self.held_out is not None], np.int64)
        np.savez(path, facts=facts, chosen=held_out, before=before)

    @classmethod
    def load(cls, path: Path) -> Split:
        """Read what `save` wrote; raises UserError when it is missing or damaged."""
        try:
            with np.load(path, allow_pickle=False) as content:
                characters, count, dropped, by_document = map(int, content["facts"])
                chosen, before = content["chosen"], np.asarray(content["before"], np.int64).reshape(-1, 2)
                if min(characters, count, dropped) < 0 or (by_document and not 0 <= 8 * len(chosen) - count < 8):
                    raise ValueError("its numbers contradict each other")
                held_out = np.unpackbits(chosen, count=count).astype(np.bool_) if by_document else None
        except Exception as error:  # numpy raises many kinds for a file of somebody else's, MemoryError among them
            raise UserError(f"{path} can't be read ({error}): delete its folder to have it made anew.") from error
        return cls(characters, count, dropped, held_out, before if len(before) else None)


def common_folder(files: Iterable[Path]) -> Path:
    """The folder that all files are in, or in folders of."""
    return Path(os.path.commonpath([path.absolute().parent for path in files]))


def labeled(items: Iterable[_Item], held_out: Bool) -> Iterator[tuple[bool, _Item]]:
    """Documents or pairs in order, each with whether it is held out. Raises UserError for one more than there were."""
    index = 0
    for item in items:
        if index >= len(held_out):
            line = "" if item.line is None else f"line {item.line} of "
            raise UserError(f"The data changed while it was being read: {line}{item.path} is new.")
        yield bool(held_out[index]), item
        index += item.last


@dataclass(frozen=True, slots=True)
class Part:
    """A shard of a corpus that is split; iterating yields its documents, each with whether it is held out.

    Attributes:
        shard: the documents.
        held_out: [documents] True for what is held out; None where the split is by position.
        room: characters for training, where the split is by position; a document that it cuts comes in two.
    """

    shard: Iterable[Document]
    held_out: Bool | None = None
    room: int = sys.maxsize

    def __iter__(self) -> Iterator[tuple[bool, Document]]:
        """Read the documents. Raises UserError as `documents` does, or where there are more than there were."""
        if self.held_out is not None:
            yield from labeled(self.shard, self.held_out)
            return
        room = self.room
        for document in self.shard:
            text = document.text
            if room > 0:
                # the part before the cut ends here, although its document goes on
                yield False, replace(document, text=text[:room], last=document.last or room <= len(text))
            if room < len(text):
                yield True, replace(document, text=text[max(room, 0) :])
            room -= len(text)


Measure = Callable[[Callable[[Shard], Sizes], Iterable[Shard]], Iterable[Sizes]]
"""Apply a function to shards, in order, as `map` does: perhaps in other processes."""


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
        measure: Measure = map,
    ) -> None:
        """Read all the data once, to find every fault in it; nothing is read where the split is given.

        Raises:
            UserError: as `documents` does.
        """
        self.files = find_files(paths)
        self._field, self._max_record_bytes = field, max_record_bytes
        if split is None:
            sizes, before = Sizes.joined(measure(partial(Sizes.of, root=common_folder(self.files)), self._shards()))
            if not len(sizes.characters):
                raise no_text(self.files)
            split = replace(Split.by_hash(sizes), before=before)
        self.split = split

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
        return iter(self._part(self, 0, None, 0))

    def parts(self) -> list[Part]:
        """The parts that `labeled` can be read in, apart from each other. Raises UserError where the data changed."""
        parts, before = self._shards(), self.split.before
        if before is None or len(parts) != len(before):
            raise UserError(f"The data changed while it was being read: {self.files[0]} or others are of another size.")
        ends = [*before[1:, 0].tolist(), None]
        return [
            # Its last document may go on in the next one.
            self._part(part, start, None if end is None else end + 1, characters)
            for part, (start, characters), end in zip(parts, before.tolist(), ends, strict=True)
        ]

    def _part(self, shard: Iterable[Document], start: int, end: int | None, characters: int) -> Part:
        """A shard with these documents, after so many characters."""
        if self.split.held_out is not None:
            return Part(shard, self.split.held_out[start:end])
        return Part(shard, room=int((1 - VALIDATION_FRACTION) * self.split.characters) - characters)

    def _shards(self) -> list[Shard]:
        return list(shards(self.files, self._field, self._max_record_bytes))
