"""Parallel texts: two files line by line, or two fields of each record, to pairs of source and target."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from anyformer.data.corpus import MIN_DOCUMENTS, VALIDATION_FRACTION, PathHasher, Split, choose_held_out
from anyformer.data.input_files import RECORD_SUFFIXES, Paths, find_files, suffix_of
from anyformer.data.records import records
from anyformer.data.sources import text_lines
from anyformer.errors import UserError


@dataclass(frozen=True, slots=True)
class Pair:
    """A text, what it is to become, and the line or row (from 1) of the file that they come from."""

    source: str
    target: str
    path: Path
    line: int

    @property
    def characters(self) -> int:
        """Number of characters of both sides."""
        return len(self.source) + len(self.target)

    @property
    def whole(self) -> bool:
        """Whether both sides have text."""
        return not (self.source.isspace() or self.target.isspace() or not self.source or not self.target)


class PairCorpus:
    """Pairs, split into training and validation: one in ten is held out, by a hash of its line.

    Pairs with an empty side are left out. Making one reads all the data once, which finds every fault in it before
    anything is written; with a `split` that was kept from then, nothing is read.

    Attributes:
        files: the files it reads, in order.
        split: how much there is, and what of it is held out.
    """

    def __init__(self, files: Sequence[Path], fields: tuple[str, str] | None, split: Split | None = None) -> None:
        """Read the data once, unless the split is known.

        Args:
            files: of `record_files`, or the two of `parallel_files`.
            fields: the names of source and target in records; None for two parallel files.
            split: what is known of the data.

        Raises:
            UserError: the data is faulty, the files differ in their number of lines, or there is no pair.
        """
        self.files = list(files)
        self._fields = fields
        self.split = self._scan() if split is None else split

    @property
    def characters(self) -> int:
        """Number of characters in all."""
        return self.split.characters

    @property
    def count(self) -> int:
        """Number of pairs."""
        return self.split.count

    def __iter__(self) -> Iterator[Pair]:
        """All pairs that have two sides."""
        return (pair for pair in self._all() if pair.whole)

    def parts(self) -> Iterator[tuple[bool, Pair]]:
        """All pairs in order, each with whether it is held out."""
        held_out = self.split.held_out
        for index, pair in enumerate(self):
            if held_out is None or index >= len(held_out):
                raise UserError(f"The data changed while it was being read: line {pair.line} of {pair.path} is new.")
            yield bool(held_out[index]), pair

    def _all(self) -> Iterator[Pair]:
        if self._fields is not None:
            for path in self.files:
                for line, (source, target) in records(path, self._fields):
                    yield Pair(source, target, path, line)
        else:
            yield from _side_by_side(*self.files)

    def _scan(self) -> Split:
        names = PathHasher(self.files)
        sizes, hashes = array("q"), array("Q")
        dropped = 0
        for pair in self._all():
            if pair.whole:
                sizes.append(pair.characters)
                hashes.append(names.hash(pair.path, pair.line))
            else:
                dropped += 1
        if not sizes:
            why = f"all {dropped} have an empty side" if dropped else "it is empty"
            raise UserError(f"There is no pair to read in {' and '.join(map(str, self.files[:2]))}: {why}.")
        held_out = choose_held_out(sizes, hashes) if len(sizes) >= MIN_DOCUMENTS else _last(len(sizes))
        return Split(sum(sizes), len(sizes), dropped, held_out)


def _last(count: int) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """Hold out the last tenth of a few pairs, one at least where there are two."""
    held_out = max(round(VALIDATION_FRACTION * count), 1 if count > 1 else 0)
    return np.arange(count) >= count - held_out


def parallel_files(source: str, target: str) -> list[Path]:
    """Return the two files of parallel lines. Raises UserError when one is missing, or is not one text file."""
    files: list[Path] = []
    for name in (source, target):
        path = Path(name)
        if not path.exists():
            raise UserError(f"There is no file {path} to take pairs from: parallel text is two files, line by line.")
        if path.is_dir():
            raise UserError(f"{path} is a folder: parallel text is two files, with a pair on each line.")
        files.append(path)
    return files


def record_files(paths: Paths) -> list[Path]:
    """Return the files of records that `paths` name. Raises UserError as `find_files`, and for files of text."""
    files = find_files(paths)
    for path in files:
        if suffix_of(path) not in RECORD_SUFFIXES:
            raise UserError(
                f"{path} has no fields to take pairs from: use {', '.join(RECORD_SUFFIXES)}, or two files of parallel "
                "lines with --source and --target, and no --data."
            )
    return files


def _side_by_side(source: Path, target: Path) -> Iterator[Pair]:
    left, right = text_lines(source), text_lines(target)
    count = 0
    for count, one in enumerate(left, start=1):
        other = next(right, None)
        if other is None:
            longer = count + sum(1 for _ in left)
            raise _unequal(source, longer, target, count - 1)
        yield Pair(one, other, source, count)
    rest = sum(1 for _ in right)
    if rest:
        raise _unequal(source, count, target, count + rest)


def _unequal(source: Path, lines: int, target: Path, others: int) -> UserError:
    return UserError(
        f"{source} has {lines:,} lines and {target} has {others:,}: parallel files have a pair on each line, so mend "
        "the one that lacks some."
    )
