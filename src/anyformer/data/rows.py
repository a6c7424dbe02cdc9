"""Rows: what is in a file, record by record, with its location. All that reads data is a view on them."""

import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, BinaryIO, NamedTuple, cast

from anyformer import limits
from anyformer.data.formats import Location, too_large, whole_text
from anyformer.data.formats.delimited import sentences, table_rows
from anyformer.data.formats.json_records import json_records
from anyformer.data.formats.parquet import class_names, open_parquet, parquet_rows
from anyformer.data.input_files import (
    RECORD_SUFFIXES,
    ROW_BYTES,
    TAGGED_SUFFIXES,
    TEXT_SUFFIXES,
    VALUE_BYTES,
    WHOLE,
    Expansion,
    Stretch,
    counted,
    opened,
    stretch_of,
    suffix_of,
)
from anyformer.errors import UserError, nearest, quote

SUFFIXES = (*RECORD_SUFFIXES, *TAGGED_SUFFIXES, *TEXT_SUFFIXES)
MISSING = object()
KEPT = "rows"
"""Folder of the cache with rows that a program has given, in files that are called after their content."""
SHOWN = Path("data")
"""The name of such rows in messages."""
_NUMBER_BYTES = 8
_COLUMNS = 2000
"""Columns of a table."""
_SURROGATE = re.compile("[\ud800-\udfff]")
"""JSON can spell one without its other half, and UTF-8 cannot."""
_KEPT_FILE = re.compile(r"[0-9a-f]{16}\.(jsonl|parquet)")
_FEW = 20
"""Names of fields that a message lists."""


class Row(NamedTuple):
    """A record of a file.

    Attributes:
        values: By the names of its columns: texts, numbers, booleans, None, and lists and objects of these.
        classes: Of columns that held numbers of classes, whose names are now in `values`: all names, in order.
    """

    location: Location
    values: Mapping[str, Any]
    classes: Mapping[str, Sequence[str]] = MappingProxyType({})


def read_file(
    path: Path,
    limit: int,
    fields: Sequence[str] = (),
    *,
    columns: Sequence[str] = (),
    shown: Path | None = None,
    stretch: Stretch = WHOLE,
) -> Iterator[Row]:
    """Read the rows of a file, compressed or not, in bounded memory; `limit` is the bytes that a row may have.

    A sentence of CoNLL has the columns `tokens` and `ner_tags`; a text file is one row with the column `text`.

    Args:
        fields: The columns of text to read, of which others may be left out; a field inside another is written with a
            dot, `translation.de`. Empty: all columns, whose structure is checked.
        columns: The names of the columns of a .csv or .tsv file that has no header.
        shown: What messages call the file; None: its path.
        stretch: The part of a .jsonl or .parquet file to read.

    Raises:
        UserError: the file can't be read, or a row is faulty or too large (with the number of its line or row).
    """
    shown = SHOWN if holds_kept_rows(path) else shown or path
    kind, limit = suffix_of(path, SUFFIXES) or ".jsonl", min(limit, sys.maxsize - 2)
    with opened(path, shown) as file:
        if kind == ".parquet":
            rows = _parquet(file, path, shown, fields, limit, stretch)
        elif kind in (".csv", ".tsv"):
            rows = _table(file, shown, fields, columns, limit)
        elif kind in TAGGED_SUFFIXES:
            tagged = sentences(file, shown, limit)
            rows = (Row(Location(shown, number), {"tokens": words, "ner_tags": tags}) for number, words, tags in tagged)
        elif kind in TEXT_SUFFIXES:
            text = whole_text(file, shown, limit)
            rows = iter([Row(Location(shown, 1), {"text": text})] if text else [])
        else:
            field = fields[0] if fields else "text"
            unit, objects = json_records(stretch_of(file, stretch), shown, limit, kind, field, stretch.first)
            rows = (Row(Location(shown, number, unit), values) for number, values in objects)
            rows = rows if fields else map(_checked, rows)
        yield from counted(rows, path) if fields else counted(rows, path, memory)


def holds_kept_rows(path: Path) -> bool:
    """Whether a file holds rows that a program has given, as its name says."""
    return path.parent.name == KEPT and _KEPT_FILE.fullmatch(path.name) is not None


def _table(file: BinaryIO, path: Path, fields: Sequence[str], columns: Sequence[str], limit: int) -> Iterator[Row]:
    rows = table_rows(file, path, limit, len(columns) or None)
    header = list(columns) or next(rows, (1, list[str]()))[1]
    if not fields and len(header) > _COLUMNS:
        raise UserError(f"{path} has {len(header):,} columns, more than the {_COLUMNS:,} that data may have.")
    indices = {name: _index(name, header, path) for name in fields or filter(None, header)} if header else {}
    for number, row in rows:
        if len(row) != len(header):
            own = f"{len(row)} field{'s' if len(row) > 1 else ''}"
            has = "the columns that were named are" if columns else "the header has"
            raise UserError(f"{path}, line {number}, has {own}, and {has} {len(header)}.")
        values = (
            {name: row[index] for name, index in indices.items()} if fields else dict(zip(header, row, strict=True))
        )
        yield Row(Location(path, number), values)


def _parquet(
    file: BinaryIO, path: Path, shown: Path, fields: Sequence[str], limit: int, stretch: Stretch
) -> Iterator[Row]:
    with open_parquet(file, path) as table:
        for name in fields:
            _require_text(table.schema_arrow, name, path)
        classes, expansion = class_names(table.schema_arrow), Expansion(path)
        groups = None if stretch == WHOLE else range(stretch.start, stretch.stop or table.num_row_groups)
        for number, values in enumerate(parquet_rows(table, fields or None, groups), start=stretch.first):
            location = Location(shown, number, "row")
            content, in_memory = measure(values, location)
            if content > limit:
                raise too_large(limit, path, number, "row")
            expansion.add(in_memory)
            yield Row(location, values) if fields else typed_row(location, values, classes)


def row_groups(file: BinaryIO, path: Path) -> list[tuple[int, int]]:
    """The bytes and the number of rows of each row group of a parquet file. Raises UserError where it can't be read."""
    with open_parquet(file, path) as table:
        groups = (table.metadata.row_group(index) for index in range(table.num_row_groups))
        return [(group.total_byte_size, group.num_rows) for group in groups]


def _checked(row: Row) -> Row:
    measure(row.values, row.location)
    return row


def memory(row: Row) -> int:
    """About how many bytes of memory a row takes."""
    return measure(row.values, row.location)[1]


def measure(values: Mapping[str, Any], location: Location) -> tuple[int, int]:
    """About how many bytes the values of a row have, lists and objects among them, and how many it takes in memory.

    Raises UserError for more than `limits.DEPTH` levels of lists and objects, and for a text with half a character.
    """
    size, count, level = 0, 0, cast("list[object]", [values])
    for _ in range(limits.DEPTH):
        inner = list[object]()
        for each in level:
            if isinstance(each, str):
                if each.isascii():
                    size += len(each)
                else:
                    check_characters(each, location)
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
            return size, size + VALUE_BYTES * count + ROW_BYTES
        level = inner
    raise UserError(f"{location}, is nested more than {limits.DEPTH} levels deep.")


def typed_row(location: Location, values: Mapping[str, Any], classes: Mapping[str, Sequence[str]]) -> Row:
    """A row of a file whose columns have types: null inside an object stands for a key that isn't there."""
    values = {name: _without_nulls(value) for name, value in values.items()}
    for column, names in classes.items():
        if column in values:
            values[column] = _named(values[column], names, location, column)
    return Row(location, values, classes)


def _without_nulls(value: object) -> object:
    if isinstance(value, dict):
        items = cast("dict[str, object]", value).items()
        return {name: _without_nulls(each) for name, each in items if each is not None}
    return [_without_nulls(each) for each in cast("list[object]", value)] if isinstance(value, list) else value


def _named(value: object, names: Sequence[str], location: Location, column: str) -> object:
    if isinstance(value, list):
        return [_named(each, names, location, column) for each in cast("list[object]", value)]
    if not isinstance(value, int) or isinstance(value, bool):
        return value
    if value == -1:  # of a split whose labels aren't known
        return None
    if 0 <= value < len(names):
        return names[value]
    raise UserError(
        f"{location}, has class {value} in its column {quote(column)}, "
        f"and the file has names for 0 to {len(names) - 1} only."
    )


def _index(field: str, header: Sequence[str], path: Path) -> int:
    """The index of a field in a header. Raises UserError where it isn't there once."""
    if (count := header.count(field)) > 1:
        raise UserError(f"{path} has {count} fields called {quote(field)}: give them different names.")
    if not count:
        raise UnknownFieldError(f"{path} {unknown_field(field, header)}")
    return header.index(field)


def check_characters(text: str, location: object) -> None:
    """Raise UserError for a text that UTF-8 can't hold."""
    if not text.isascii() and _SURROGATE.search(text):
        raise UserError(f"{location}, holds half a character: a \\ud800 without its other half.")


class UnknownFieldError(UserError):
    """A record has no such field."""


def unknown_field(field: str, names: Iterable[str], noun: str = "field") -> str:
    """Say that there is no such field, and which ones there are."""
    names = [str(name) for name in names]
    hint = nearest(field, names)
    some = [repr(name) for name in names[:_FEW]] + ["..."] * (len(names) > _FEW)
    others = "" if hint.startswith("choose") or not names else f" It has {', '.join(some)}."
    return f"has no {noun} {quote(field)}: {hint}{'' if hint.endswith('?') else '.'}{others}"


def _require_text(schema: Any, field: str, path: Path) -> None:
    """Raise UserError where a parquet file has no such field, or one that holds something else than text."""
    from pyarrow import types

    kinds, name = {each.name: each.type for each in schema}, field
    while name not in kinds:
        first, dot, name = name.partition(".")
        if not dot or first not in kinds or not types.is_struct(kinds[first]):
            raise UnknownFieldError(f"{path} {unknown_field(field, schema.names)}")
        kinds = {each.name: each.type for each in kinds[first]}
    kind = kinds[name]
    text = kind.value_type if types.is_dictionary(kind) else kind
    tests = (types.is_string, types.is_large_string, types.is_string_view, types.is_null)
    if not any(test(text) for test in tests):
        raise UserError(f"{path} has no text in its field {quote(field)}: that is of type {kind}. Name another field.")


def records(
    path: Path, fields: Sequence[str], max_record_bytes: int = limits.RECORD_BYTES, stretch: Stretch = WHOLE
) -> Iterator[tuple[int, tuple[str, ...]]]:
    """Read fields of a file's records, in order: the line or row of each, from 1, and their texts, "" for null.

    The file, its fields and its stretch are as in `read_file`; a line, or these texts of a row, may have
    `max_record_bytes`. Raises UserError as it does, and where a field is missing or no text.
    """
    for row in read_file(path, max_record_bytes, fields, stretch=stretch):
        yield row.location.number, tuple(text_of(row.values, field, row.location) for field in fields)


def text_of(record: Mapping[str, Any], field: str, location: object) -> str:
    """Return the text of a field, "" for null; raises UserError where there is none."""
    value = find(record, field)
    if isinstance(value, str):
        check_characters(value, location)
        return value
    if value is MISSING:
        raise UnknownFieldError(f"{location}, {unknown_field(field, record)}")
    if value is None:
        return ""
    kind = type(value).__name__
    raise UserError(f"{location}, has no text in its field {quote(field)}: that is of type {kind}. Name another field.")


def find(record: Mapping[str, Any], field: str) -> object:
    """The value of a field, which may be inside others, `translation.de`; `MISSING` where there is none."""
    value: Any = record
    while isinstance(value, Mapping):
        if field in value:
            return value[field]
        first, dot, field = field.partition(".")
        value = value.get(first) if dot else None
    return MISSING
