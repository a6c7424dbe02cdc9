"""Pairs of token sequences on disk: the source that a sequence-to-sequence model reads, and the target that it writes.

A pair file is a folder::

    source.bin, target.bin   token files: the ids of all sources, of all targets, one after the other
    source.npy, target.npy   [pairs + 1] int64: pair i has the ids from offset i up to offset i + 1

The ids are those of the text alone, without beginning, end or padding: batches put those around them.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from anyformer.data.pair_corpus import Pair
from anyformer.data.parallel_encoding import Ids
from anyformer.data.sources import Document
from anyformer.data.token_files import TokenFile, tokenize_splits
from anyformer.errors import UserError
from anyformer.tokenizer import Tokenizer

Int64 = npt.NDArray[np.int64]
_SIDES = ("source", "target")


@dataclass(frozen=True, slots=True)
class PairFile:
    """Open pairs, read from disk as they are used.

    Attributes:
        sources, targets: the ids of all of them.
        source_offsets, target_offsets: [pairs + 1] where each begins and ends.
    """

    sources: TokenFile
    targets: TokenFile
    source_offsets: Int64
    target_offsets: Int64

    @classmethod
    def open(cls, folder: str | os.PathLike[str]) -> PairFile:
        """Open a pair file; raises UserError when it is missing or damaged."""
        folder = Path(folder)
        sources, targets = (TokenFile.open(folder / f"{side}.bin") for side in _SIDES)
        offsets = _offsets(folder / "source.npy", len(sources)), _offsets(folder / "target.npy", len(targets))
        if len(offsets[0]) != len(offsets[1]):
            raise UserError(f"The pairs in {folder} are damaged: delete the folder to have it made anew.")
        return cls(sources, targets, *offsets)

    def __len__(self) -> int:
        """Number of pairs."""
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
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{path} can't be read ({error}): delete its folder to have it made anew.") from error
    if offsets.dtype != np.int64 or offsets.ndim != 1 or not len(offsets) or offsets[-1] != total:
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
