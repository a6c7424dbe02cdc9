"""Parallel texts: two files line by line, or two fields of each record, to pairs of source and target."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from anyformer.data.corpus import VALIDATION_FRACTION, Split
from anyformer.data.input_files import RECORD_SUFFIXES, Paths, find_files, suffix_of
from anyformer.data.records import records
from anyformer.data.sources import text_lines
from anyformer.errors import UserError


@dataclass(frozen=True, slots=True)
class Pair:
    """A source, its target, and the line or row (from 1) of the file that they come from."""

    source: str
    target: str
    path: Path
    line: int


class PairCorpus:
    """Pairs, split into training and validation: one in ten is held out, by a hash of its line.

    Pairs with an empty side are left out. See `Corpus`.
    """

    def __init__(self, files: Sequence[Path], fields: tuple[str, str] | None, split: Split | None = None) -> None:
        """Read all the data once, unless the split is known.

        Args:
            files: of `record_files`, or the two of `parallel_files`.
            fields: the names of source and target in records; None for two parallel files.
            split: of the same data.

        Raises:
            UserError: the data is faulty, the files differ in their number of lines, or there is no pair.
        """
        self.files = list(files)
        self._fields = fields
        self.split = self._scan() if split is None else split

    def __iter__(self) -> Iterator[Pair]:
        """All pairs that have two sides."""
        return (pair for pair in self._all() if not _is_empty(pair))

    def labeled(self) -> Iterator[tuple[bool, Pair]]:
        """All pairs in order, each with whether it is held out."""
        held_out = self.split.held_out
        for index, pair in enumerate(self):
            if held_out is None or index >= len(held_out):
                raise UserError(f"The data changed while it was being read: line {pair.line} of {pair.path} is new.")
            yield bool(held_out[index]), pair

    def _all(self) -> Iterator[Pair]:
        if self._fields is None:
            yield from _side_by_side(*self.files)
        else:
            for path in self.files:
                for line, (source, target) in records(path, self._fields):
                    yield Pair(source, target, path, line)

    def _scan(self) -> Split:
        dropped = 0

        def sizes() -> Iterator[tuple[Path, int, int]]:
            nonlocal dropped
            for pair in self._all():
                if _is_empty(pair):
                    dropped += 1
                else:
                    yield pair.path, pair.line, len(pair.source) + len(pair.target)

        split = Split.by_hash(self.files, sizes())
        count = split.count
        if not count:
            reason = f"all {dropped} have an empty side" if dropped else "it is empty"
            raise UserError(f"There is no pair to read in {' and '.join(map(str, self.files[:2]))}: {reason}.")
        held_out = split.held_out
        if held_out is None:
            # Of a few the last tenth, one at least where there are two.
            held_out = np.arange(count) >= count - max(round(VALIDATION_FRACTION * count), int(count > 1))
        return replace(split, dropped=dropped, held_out=held_out)


def parallel_files(source: str, target: str) -> list[Path]:
    """Return the two files of parallel lines. Raises UserError when one is missing, or is not one text file."""
    files = [Path(source), Path(target)]
    for path in files:
        if not path.exists():
            raise UserError(f"There is no file {path} to take pairs from: parallel text is two files, line by line.")
        if path.is_dir():
            raise UserError(f"{path} is a folder: parallel text is two files, with a pair on each line.")
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


def _is_empty(pair: Pair) -> bool:
    return not pair.source.strip() or not pair.target.strip()


def _side_by_side(source: Path, target: Path) -> Iterator[Pair]:
    left, right = text_lines(source), text_lines(target)
    count = others = 0
    for count, text in enumerate(left, start=1):
        other = next(right, None)
        if other is None:
            count += sum(1 for _ in left)
            break
        others += 1
        yield Pair(text, other, source, count)
    others += sum(1 for _ in right)
    if count != others:
        raise UserError(
            f"{source} has {count:,} lines and {target} has {others:,}: parallel files have a pair on each line, so "
            "mend the one that lacks some."
        )
