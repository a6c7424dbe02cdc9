"""Rows of all that a data set may be given as: files, folders, standard input, data sets of the hub."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from anyformer import limits
from anyformer.data.disk_cache import Cache
from anyformer.data.examples import Where
from anyformer.data.input_files import counted, find_files
from anyformer.data.materialize import HUB, STANDARD_INPUT, hub_rows, standard_input
from anyformer.data.pairs import parallel_files, side_by_side
from anyformer.data.records import record_limit
from anyformer.data.rows import SUFFIXES, Row, memory, read_file, typed_row


@dataclass(frozen=True, slots=True)
class RowFile:
    """A file of rows.

    Attributes:
        path: Where it is.
        shown: What messages call it.
        target: Of parallel text, the file of the other language.
        classes: Names of classes, see `Row`.
        is_typed: Whether an object has the same keys in each row, so that null stands for one that isn't there.
    """

    path: Path
    shown: Path
    target: Path | None = None
    classes: Mapping[str, Sequence[str]] = field(default_factory=dict[str, Sequence[str]])
    is_typed: bool = False

    def rows(self, columns: Sequence[str], limit: int) -> Iterator[Row]:
        """Read it; see `read_rows`."""
        if self.target is not None:
            pairs = side_by_side(self.path, self.target, limit)
            rows = (
                Row(Where(self.path, pair.line), {"source": pair.source, "target": pair.target})
                for pair in pairs
                if pair.source or pair.target
            )
            return counted(rows, self.path, memory)
        rows = read_file(self.path, limit, columns=columns, shown=self.shown)
        if not self.is_typed:
            return rows
        return (typed_row(Where(self.shown, row.where.number, "row"), row.values, self.classes) for row in rows)


def read_rows(
    paths: Sequence[str],
    cache: Cache | None = None,
    *,
    columns: Sequence[str] = (),
    max_record_bytes: int = limits.RECORD_BYTES,
) -> Iterator[Row]:
    """Read the rows of files, in order.

    Args:
        paths: Files of `SUFFIXES`, compressed or not, folders and globs of them, `-` for standard input, data sets of
            the hub as `hf:NAME[:CONFIG][:SPLIT]`, and two files of parallel lines as `SOURCE,TARGET`. A sentence of
            CoNLL has the columns `tokens` and `ner_tags`, a text file is one row with the column `text`, parallel
            lines have the columns `source` and `target`.
        cache: Where standard input and data sets of the hub are kept; None: in the user's own.
        columns: The names of the columns of .csv and .tsv files that have no header.
        max_record_bytes: The size that a row may have.

    Raises:
        UserError: What `find_files` raises; a file can't be read, or a row is faulty (with the file and its number).
    """
    for file in row_files(paths, cache):
        yield from file.rows(columns, record_limit(max_record_bytes))


def row_files(
    paths: Sequence[str],
    cache: Cache | None = None,
    *,
    stdin: BinaryIO | None = None,
    progress: Callable[[str], None] | None = None,
) -> list[RowFile]:
    """The files that paths name, each once; see `read_rows` and, for the arguments, `materialize`."""
    if not paths:
        return [RowFile(path, path) for path in find_files([])]
    found = list[RowFile]()
    for path in paths:
        if progress is not None and (path == STANDARD_INPUT or path.startswith(HUB)):
            progress(f"reading {'standard input' if path == STANDARD_INPUT else path}")
        if path == STANDARD_INPUT:
            kept = standard_input(cache or Cache(), stdin)
            found.append(RowFile(kept, Path("standard input")))
        elif path.startswith(HUB):
            kept, classes = hub_rows(path, cache or Cache())
            found.append(RowFile(kept, Path(path), classes=classes, is_typed=True))
        elif sides := _parallel(path):
            found.append(RowFile(sides[0], sides[0], target=sides[1]))
        else:
            found += [RowFile(file, file) for file in find_files(path, SUFFIXES)]
    return list({(file.path.absolute(), file.target): file for file in found}.values())


def _parallel(path: str) -> list[Path] | None:
    source, comma, target = path.partition(",")
    if not comma or not source or not target or _exists(path):
        return None
    return parallel_files(source, target) if _exists(source) or _exists(target) else None


def _exists(path: str) -> bool:
    try:
        return Path(path).exists()
    except OSError:  # a text that is too long for a name
        return False
