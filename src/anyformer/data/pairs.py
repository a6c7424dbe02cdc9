"""Pairs for sequence to sequence: from two files line by line, or two fields of each record, to a pair file.

A pair file is a folder::

    source.bin, target.bin   token files: the ids of all sources, of all targets, one after the other
    source.npy, target.npy   [pairs + 1] int64: pair i has the ids from offset i up to offset i + 1

The ids are those of the text alone, without beginning, end or padding: batches put those around them.
"""

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path
from typing import ClassVar, Self

import numpy as np

from anyformer import limits
from anyformer.data.batch import Int64
from anyformer.data.corpus import VALIDATION_FRACTION, Sizes, Split, common_folder, labeled
from anyformer.data.documents import Document
from anyformer.data.formats import text_lines
from anyformer.data.input_files import RECORD_SUFFIXES, Paths, find_files, suffix_of
from anyformer.data.rows import records
from anyformer.data.token_files import Ids, TokenFile, tokenize_splits
from anyformer.errors import UserError
from anyformer.tokenizer import Tokenizer

_SIDES = ("source", "target")


@dataclass(frozen=True, slots=True)
class Pair:
    """A source, its target, and the line or row (from 1) of the file that they come from."""

    last: ClassVar[bool] = True
    source: str
    target: str
    path: Path
    line: int

    def __len__(self) -> int:
        return len(self.source) + len(self.target)

    @property
    def is_whole(self) -> bool:
        """Whether neither side is empty."""
        return bool(self.source.strip() and self.target.strip())


class PairCorpus:
    """Pairs, split into training and validation: one in ten is held out, by a hash of its line.

    Pairs with an empty side are left out. See `Corpus`.
    """

    def __init__(
        self,
        files: Sequence[Path],
        fields: tuple[str, str] | None,
        split: Split | None = None,
        *,
        max_record_bytes: int = limits.RECORD_BYTES,
    ) -> None:
        """Read all the data once, unless the split is given.

        Args:
            files: of `record_files`, or the two of `parallel_files`.
            fields: the names of source and target in records; None for two parallel files.

        Raises:
            UserError: the data is faulty, the files differ in their number of lines, or there is no pair.
        """
        self.files = list(files)
        self._fields, self._max_record_bytes = fields, max_record_bytes
        self.split = split or self._new_split()

    def __iter__(self) -> Iterator[Pair]:
        """All pairs that have two sides."""
        return (pair for pair in self._all() if pair.is_whole)

    def labeled(self) -> Iterator[tuple[bool, Pair]]:
        """All pairs in order, each with whether it is held out."""
        assert self.split.held_out is not None
        return labeled(self, self.split.held_out)

    def _all(self) -> Iterator[Pair]:
        if self._fields is None:
            source, target = self.files
            yield from side_by_side(source, target, self._max_record_bytes)
        else:
            for path in self.files:
                for line, (source, target) in records(path, self._fields, self._max_record_bytes):
                    yield Pair(source, target, path, line)

    def _new_split(self) -> Split:
        dropped = 0

        def whole() -> Iterator[Pair]:
            nonlocal dropped
            for pair in self._all():
                if pair.is_whole:
                    yield pair
                else:
                    dropped += 1

        split = Split.by_hash(Sizes.of(whole(), common_folder(self.files)))
        if not split.count:
            reason = f"all {dropped} have an empty side" if dropped else "it is empty"
            raise UserError(f"There is no pair to read in {' and '.join(map(str, self.files[:2]))}: {reason}.")
        held_out = split.held_out
        if held_out is None:
            # Of a few the last tenth, one at least where there are two.
            few = max(round(VALIDATION_FRACTION * split.count), int(split.count > 1))
            held_out = np.arange(split.count) >= split.count - few
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


def side_by_side(source: Path, target: Path, max_record_bytes: int) -> Iterator[Pair]:
    """Yield the pairs of two parallel files. Raises UserError where they differ in their number of lines."""
    counts = [0, 0]
    lines = zip_longest(text_lines(source, max_record_bytes), text_lines(target, max_record_bytes))
    for line, (text, other) in enumerate(lines, start=1):
        counts = [counts[0] + (text is not None), counts[1] + (other is not None)]
        if text is not None and other is not None:
            yield Pair(text, other, source, line)
    if counts[0] != counts[1]:
        raise UserError(
            f"{source} has {counts[0]:,} lines and {target} has {counts[1]:,}: parallel files have a pair on each "
            "line, so mend the one that lacks some."
        )


@dataclass(frozen=True, slots=True)
class PairFile:
    """Open pairs, read from disk as they are used.

    Attributes:
        source_offsets, target_offsets: [pairs + 1] where each begins and ends.
    """

    sources: TokenFile
    targets: TokenFile
    source_offsets: Int64
    target_offsets: Int64

    @classmethod
    def open(cls, folder: str | os.PathLike[str]) -> Self:
        """Open a pair file; raises UserError when it is missing or damaged."""
        folder = Path(folder)
        sources, targets = (TokenFile.open(folder / f"{side}.bin") for side in _SIDES)
        offsets = _offsets(folder / "source.npy", len(sources)), _offsets(folder / "target.npy", len(targets))
        if len(offsets[0]) != len(offsets[1]):
            raise UserError(f"The pairs in {folder} are damaged: delete the folder to have it made anew.")
        return cls(sources, targets, *offsets)

    def __len__(self) -> int:
        return len(self.source_offsets) - 1

    def source(self, index: int) -> Ids:
        """Return the ids of a source, [length], read-only."""
        return self.sources.ids[self.source_offsets[index] : self.source_offsets[index + 1]]

    def target(self, index: int) -> Ids:
        """Return the ids of a target, [length], read-only."""
        return self.targets.ids[self.target_offsets[index] : self.target_offsets[index + 1]]

    @property
    def source_lengths(self) -> Int64:
        """[pairs] number of ids of each source."""
        return np.diff(self.source_offsets)

    @property
    def target_lengths(self) -> Int64:
        """[pairs] number of ids of each target."""
        return np.diff(self.target_offsets)

    @property
    def digest(self) -> str:
        """A hash of all ids and offsets."""
        digest = hashlib.sha256(f"{self.sources.header.digest} {self.targets.header.digest}".encode())
        digest.update(self.source_offsets.tobytes())
        digest.update(self.target_offsets.tobytes())
        return digest.hexdigest()


def _offsets(path: Path, total: int) -> Int64:
    try:
        offsets: Int64 = np.load(path, allow_pickle=False)
    except Exception as error:  # numpy raises many kinds for a file of somebody else's, MemoryError among them
        raise UserError(f"{path} can't be read ({error}): delete its folder to have it made anew.") from error
    is_list = offsets.dtype == np.int64 and offsets.ndim == 1 and len(offsets) > 0
    if not is_list or offsets[0] != 0 or offsets[-1] != total or (np.diff(offsets) < 0).any():
        raise UserError(f"{path} is damaged: delete its folder to have it made anew.")
    return offsets


def tokenize_pairs(
    pairs: Iterable[tuple[str, Pair]],
    tokenizer: Tokenizer,
    folders: Mapping[str, Path],
    *,
    workers: int | None = 1,
    progress: Callable[[int], None] | None = None,
) -> None:
    """Write pairs, each with the name of its split, to the pair file of that split, a new folder.

    The arguments and what is raised are those of `tokenize_splits`.
    """
    for folder in folders.values():
        folder.mkdir()
    sides = (
        (f"{split}/{side}", Document(text, pair.path, pair.line))
        for split, pair in pairs
        for side, text in zip(_SIDES, (pair.source, pair.target), strict=True)
    )
    paths = {f"{split}/{side}": folder / f"{side}.bin" for split, folder in folders.items() for side in _SIDES}
    lengths = tokenize_splits(sides, tokenizer, paths, separate=False, workers=workers, progress=progress)
    for name, path in paths.items():
        np.save(path.with_suffix(".npy"), np.append(0, np.cumsum(lengths[name], dtype=np.int64)))
