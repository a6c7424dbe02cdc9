"""Rows: what is in a file, record by record, with its structure."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

from anyformer import limits
from anyformer.data.disk_cache import Cache
from anyformer.data.examples import Where
from anyformer.data.formats import too_large, utf8_length
from anyformer.data.formats.conll import sentences
from anyformer.data.formats.delimited import check_width, table_rows
from anyformer.data.formats.json_records import json_records
from anyformer.data.formats.parquet import class_names, open_parquet, parquet_rows
from anyformer.data.input_files import (
    RECORD_SUFFIXES,
    ROW_BYTES,
    TAGGED_SUFFIXES,
    TEXT_SUFFIXES,
    VALUE_BYTES,
    Expansion,
    counted,
    find_files,
    opened,
    suffix_of,
)
from anyformer.data.materialize import HUB, STANDARD_INPUT, hub_rows, standard_input
from anyformer.data.pairs import parallel_files, side_by_side
from anyformer.data.records import check_characters, column_of, record_limit
from anyformer.data.sources import decoded
from anyformer.errors import UserError, quote

SUFFIXES = (*RECORD_SUFFIXES, *TAGGED_SUFFIXES, *TEXT_SUFFIXES)
_NUMBER_BYTES = 8
_COLUMNS = 2000
"""Columns of a table."""


@dataclass(frozen=True, slots=True)
class Row:
    """A record of a file.

    Attributes:
        where: Its place.
        values: By the names of its columns: texts, numbers, booleans, None, and lists and objects of these.
        classes: Of columns that held numbers of classes, whose names are now in `values`: all names, in order.
    """

    where: Where
    values: Mapping[str, Any]
    classes: Mapping[str, Sequence[str]] = field(default_factory=dict[str, Sequence[str]])


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
        return counted(self._rows(columns, limit), self.path, lambda row: _memory(measure(row.values, row.where)))

    def _rows(self, columns: Sequence[str], limit: int) -> Iterator[Row]:
        if self.target is not None:
            for pair in side_by_side(self.path, self.target, limit):
                if pair.source or pair.target:
                    yield Row(Where(self.path, pair.line), {"source": pair.source, "target": pair.target})
            return
        kind = suffix_of(self.path, SUFFIXES)
        with opened(self.path) as file:
            if kind == ".parquet":
                yield from _parquet(file, self.path, limit)
            elif kind in (".csv", ".tsv"):
                yield from _table(file, self.path, columns, limit)
            elif kind in TAGGED_SUFFIXES:
                for number, words, tags in sentences(file, self.path, limit):
                    yield Row(Where(self.path, number), {"tokens": words, "ner_tags": tags})
            elif kind in TEXT_SUFFIXES:
                yield from _document(file, self.shown, limit)
            else:
                unit, objects = json_records(file, self.shown, limit, kind or ".jsonl", "text")
                for number, values in objects:
                    yield self._row(Where(self.shown, number, "row" if self.is_typed else unit), values)

    def _row(self, where: Where, values: dict[str, Any]) -> Row:
        measure(values, where)
        return typed_row(where, values, self.classes) if self.is_typed else Row(where, values)


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


def _table(file: BinaryIO, path: Path, columns: Sequence[str], limit: int) -> Iterator[Row]:
    rows = table_rows(file, path, limit, len(columns) or None)
    header, has = (list(columns), "the columns that were named are") if columns else ([], "the header has")
    if not header:
        header = next(rows, (1, list[str]()))[1]
    if len(header) > _COLUMNS:
        raise UserError(f"{path} has {len(header):,} columns, more than the {_COLUMNS:,} that data may have.")
    for name in filter(None, header):
        column_of(name, header, path)
    for number, row in rows:
        check_width(row, len(header), path, number, has)
        yield Row(Where(path, number), dict(zip(header, row, strict=True)))


def _parquet(file: BinaryIO, path: Path, limit: int) -> Iterator[Row]:
    with open_parquet(file, path) as table:
        classes, expansion = class_names(table.schema_arrow), Expansion(path)
        for number, values in parquet_rows(table, None):
            where = Where(path, number, "row")
            size = measure(values, where)
            if size.content > limit:
                raise too_large(limit, path, number, "row")
            expansion.add(_memory(size))
            yield typed_row(where, values, classes)


def _document(file: BinaryIO, path: Path, limit: int) -> Iterator[Row]:
    blocks, size = list[str](), 0
    for block in decoded(file, path):
        size += utf8_length(block)
        if size > limit:
            raise UserError(
                f"{path} has more than {limit:,} bytes, and a text file is one example: split it, or raise "
                "--max-record-bytes."
            )
        blocks.append(block)
    if blocks:
        yield Row(Where(path, 1), {"text": "".join(blocks)})


class Size(NamedTuple):
    """The size of a row: about how many bytes its values have, and how many there are, lists and objects included."""

    content: int
    values: int


def _memory(size: Size) -> int:
    return size.content + VALUE_BYTES * size.values + ROW_BYTES


def measure(values: Mapping[str, Any], where: Where) -> Size:
    """Count the values of a row and their bytes.

    Raises:
        UserError: They are nested more than `limits.DEPTH` levels deep, or a text has half a character.
    """
    size, count, level = 0, 0, cast("list[object]", [values])
    for _ in range(limits.DEPTH):
        inner = list[object]()
        for each in level:
            if isinstance(each, str):
                if each.isascii():
                    size += len(each)
                else:
                    check_characters(each, f"{where},")
                    size += len(each.encode("utf-8"))
            elif isinstance(each, Mapping):
                inner += cast("Mapping[object, object]", each).keys()
                inner += cast("Mapping[object, object]", each).values()
            elif isinstance(each, list):
                inner += cast("list[object]", each)
            else:
                size += len(each) if isinstance(each, bytes) else _NUMBER_BYTES
        count += len(inner)
        if not inner:
            return Size(size, count)
        level = inner
    raise UserError(f"{where}, is nested more than {limits.DEPTH} levels deep.")


def typed_row(where: Where, values: dict[str, Any], classes: Mapping[str, Sequence[str]]) -> Row:
    """A row of a file whose columns have types."""
    values = {name: _without_nulls(value) for name, value in values.items()}
    for column, names in classes.items():
        if column in values:
            values[column] = _named(values[column], names, where, column)
    return Row(where, values, classes)


def _without_nulls(value: object) -> object:
    if isinstance(value, dict):
        items = cast("dict[str, object]", value).items()
        return {name: _without_nulls(each) for name, each in items if each is not None}
    return [_without_nulls(each) for each in cast("list[object]", value)] if isinstance(value, list) else value


def _named(value: object, names: Sequence[str], where: Where, column: str) -> object:
    if isinstance(value, list):
        return [_named(each, names, where, column) for each in cast("list[object]", value)]
    if not isinstance(value, int) or isinstance(value, bool):
        return value
    if value == -1:  # of a split whose labels aren't known
        return None
    if 0 <= value < len(names):
        return names[value]
    raise UserError(
        f"{where}, has class {value} in its column {quote(column)}, "
        f"and the file has names for 0 to {len(names) - 1} only."
    )
