"""Pairs of token sequences on disk: what a sequence-to-sequence model reads, and what it is to write.

A pair file is a folder::

    source.bin, target.bin   token files: the ids of all sources, of all targets, one after the other
    source.npy, target.npy   [pairs + 1] int64: pair i has the ids from offset i up to offset i + 1

The ids are those of the text alone, without beginning, end or padding: batches put those around them.
"""

from __future__ import annotations

import hashlib
import os
from array import array
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import numpy.typing as npt

from anyformer.data.pair_corpus import Pair
from anyformer.data.parallel_encoding import BatchEncoder, Ids, Lengths, chunks, encoded
from anyformer.data.token_files import TokenFile, TokenWriter, utf8_length
from anyformer.errors import UserError

Int64 = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class PairFile:
    """Open pairs, read from disk as they are used.

    Attributes:
        folder: where they are.
        sources, targets: the ids of all of them.
        source_offsets, target_offsets: [pairs + 1] where each begins and ends.
    """

    folder: Path
    sources: TokenFile
    targets: TokenFile
    source_offsets: Int64
    target_offsets: Int64

    @classmethod
    def open(cls, folder: str | os.PathLike[str]) -> PairFile:
        """Open a pair file; raises UserError when it is missing or damaged."""
        where = Path(folder)
        sources, targets = TokenFile.open(where / "source.bin"), TokenFile.open(where / "target.bin")
        offsets = _offsets(where / "source.npy", len(sources)), _offsets(where / "target.npy", len(targets))
        if len(offsets[0]) != len(offsets[1]):
            raise UserError(f"The pairs in {where} are damaged: delete the folder to have it made anew.")
        return cls(where, sources, targets, *offsets)

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
    def digest(self) -> str:
        """A hash of all ids and offsets."""
        own = hashlib.sha256(f"{self.sources.header.digest} {self.targets.header.digest}".encode())
        own.update(self.source_offsets.tobytes())
        own.update(self.target_offsets.tobytes())
        return own.hexdigest()

    @property
    def source_lengths(self) -> Int64:
        """[pairs] number of ids of each source."""
        return np.diff(self.source_offsets)

    @property
    def target_lengths(self) -> Int64:
        """[pairs] number of ids of each target."""
        return np.diff(self.target_offsets)


def tokenize_pairs(
    pairs: Iterable[tuple[str, Pair]],
    tokenizer: BatchEncoder,
    folders: Mapping[str, Path],
    *,
    workers: int | None = 1,
    progress: Callable[[int], None] | None = None,
) -> None:
    """Write pairs, each with the name of the split it belongs to, to the pair file of that split.

    Args:
        pairs: read once, in order.
        tokenizer: both sides are encoded without the special tokens around them.
        folders: of the pair file of each split; they must not exist yet.
        workers: processes, None for one per core. The files do not depend on it.
        progress: called with the number of characters done since its last call.

    Raises:
        UserError: a pair can't be read or encoded.
        OSError: a file can't be written.
    """
    with ExitStack() as stack:
        writers: dict[str, list[_SideWriter]] = {}
        for name, folder in folders.items():
            folder.mkdir()
            sides = (_SideWriter(folder, side, tokenizer.vocab_size) for side in ("source", "target"))
            writers[name] = [stack.enter_context(side) for side in sides]
        groups = chunks(pairs, lambda item: item[1].characters)
        for group, (lengths, ids) in encoded(groups, _texts, tokenizer, workers):
            side = np.arange(2 * len(group)) % 2
            for name, sides in writers.items():
                mine = [pair for split, pair in group if split == name]
                if mine:
                    chosen = np.repeat([split == name for split, _ in group], 2)
                    for number, own in enumerate(sides):
                        these = chosen & (side == number)
                        size = sum(utf8_length(pair.target if number else pair.source) for pair in mine)
                        own.write(ids[np.repeat(these, lengths)], lengths[these], size)
            if progress is not None:
                progress(sum(pair.characters for _, pair in group))


def _texts(group: list[tuple[str, Pair]]) -> list[str]:
    return [text for _, pair in group for text in (pair.source, pair.target)]


class _SideWriter:
    """Writes one side of the pairs: a token file, and where each text begins and ends in it."""

    def __init__(self, folder: Path, name: str, vocab_size: int) -> None:
        self._tokens = TokenWriter(folder / f"{name}.bin", vocab_size)
        self._offsets_path = folder / f"{name}.npy"
        self._lengths = array("I")

    def __enter__(self) -> Self:
        self._tokens.__enter__()
        return self

    def write(self, ids: Ids, lengths: Lengths, size: int) -> None:
        self._tokens.write(ids, size=size, documents=len(lengths))
        self._lengths.frombytes(np.ascontiguousarray(lengths).tobytes())

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._tokens.__exit__(kind, error, trace)
        if kind is None:
            lengths = np.frombuffer(self._lengths, dtype=np.uint32) if self._lengths else np.zeros(0, np.uint32)
            np.save(self._offsets_path, np.concatenate(([0], np.cumsum(lengths, dtype=np.int64))))


def _offsets(path: Path, total: int) -> Int64:
    try:
        offsets: Int64 = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{path} can't be read ({error}): delete its folder to have it made anew.") from error
    whole = offsets.dtype == np.int64 and offsets.ndim == 1 and len(offsets) > 0 and offsets[-1] == total
    if not whole:
        raise UserError(f"{path} is damaged: delete its folder to have it made anew.")
    return offsets
