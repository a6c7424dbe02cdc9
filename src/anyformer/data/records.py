"""Records: the lines of jsonl, the rows of csv, tsv and parquet, and the fields in them that hold text."""

import codecs
import csv
import io
import json
import re
import shutil
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, cast

from anyformer import limits
from anyformer.data.input_files import Expansion, opened, suffix_of
from anyformer.errors import UserError, nearest

Record = tuple[int, tuple[str, ...]]
"""The line or row it begins at, counted from 1, and the text of each wanted field, "" for null."""

_ROWS = 16
"""Rows of parquet that are read at a time. A few bytes can stand for megabytes in each of them, and with so few rows
there is no time to be won any more."""
_BUFFER = 1 << 20
_ROW_BYTES = 16
"""What a row counts beside its text, against files of endless rows."""
_SURROGATE = re.compile("[\ud800-\udfff]")
"""JSON can spell one without its other half, and UTF-8 cannot."""
_MISSING = object()
_FEW = 20
"""Names of fields that a message lists."""


def records(path: Path, fields: Sequence[str], max_record_bytes: int = limits.RECORD_BYTES) -> Iterator[Record]:
    """Read fields of a file's records, in order.

    Args:
        path: .jsonl, .json (one object a line), .csv or .tsv (with a header) or .parquet, compressed or not.
        fields: their names; a field inside another is written with a dot, `translation.de`.
        max_record_bytes: the size that a line, or the wanted text of a row, may have.

    Raises:
        UserError: the file can't be read; a line or row is faulty or too large, or a field is missing or no text (with
            the number).
    """
    kind = suffix_of(path)
    max_record_bytes = min(max_record_bytes, sys.maxsize - 1)
    with opened(path) as file:
        if kind == ".parquet":
            yield from _parquet(file, path, fields, max_record_bytes)
        elif kind in (".csv", ".tsv"):
            yield from _table(file, path, fields, "," if kind == ".csv" else "\t", max_record_bytes)
        else:
            yield from _lines(file, path, fields, max_record_bytes)


def not_text(path: Path, offset: int) -> UserError:
    """What to raise for a byte that can't be part of a text."""
    return UserError(f"{path} is not UTF-8 text: byte {offset} can't be part of a text.")


def check_size(text: str, limit: int, path: Path, number: int, kind: str = "line") -> None:
    """Raise UserError for a text with more bytes than a record may have."""
    if len(text) > limit or (4 * len(text) > limit and len(text.encode("utf-8")) > limit):
        raise _too_large(limit, path, number, kind)


def _too_large(limit: int, path: Path, number: int, kind: str = "line") -> UserError:
    return UserError(
        f"{path}, {kind} {number}, has more than {limit:,} bytes: if that is meant to be, raise --max-record-bytes."
    )


def utf8_length(text: str) -> int:
    """The length of a text in UTF-8."""
    return len(text) if text.isascii() else len(text.encode("utf-8"))


def text_of(record: Mapping[str, Any], field: str, where: str) -> str:
    """Return the text of a field, "" for null; raises UserError where there is none."""
    value = _find(record, field)
    if value is _MISSING:
        raise UserError(f"{where} {unknown_field(field, record)}")
    if value is None:
        return ""
    if not isinstance(value, str):
        kind = type(value).__name__
        raise UserError(f"{where} has no text in its field {field!r}: that is of type {kind}. Name another field.")
    if not value.isascii() and _SURROGATE.search(value):
        raise UserError(f"{where} holds half a character: a \\ud800 without its other half.")
    return value


def unknown_field(field: str, names: Iterable[str]) -> str:
    """Say that there is no such field, and which ones there are."""
    known = [str(name) for name in names]
    hint = nearest(field, known)
    some = [repr(name) for name in known[:_FEW]] + ["..."] * (len(known) > _FEW)
    others = "" if hint.startswith("choose") or not known else f" It has {', '.join(some)}."
    return f"has no field {field!r}: {hint}{others}" + ("" if hint.endswith("?") else ".")


def _find(record: Mapping[str, Any], field: str) -> object:
    found: Any = record
    while isinstance(found, Mapping):
        if field in found:
            return found[field]
        first, dot, field = field.partition(".")
        found = found.get(first) if dot else None
    return _MISSING


def _lines(file: BinaryIO, path: Path, fields: Sequence[str], limit: int) -> Iterator[Record]:
    end = 0
    for number, line in enumerate(iter(partial(file.readline, limit + 1), b""), start=1):
        if len(line) > limit:
            raise _too_large(limit, path, number)
        content = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
        end += len(line)
        if not content.strip():
            continue
        try:
            record: object = json.loads(content.decode("utf-8"))
        except UnicodeDecodeError as error:
            raise not_text(path, end - len(content) + error.start) from error
        except json.JSONDecodeError as error:
            where = f"{path}, line {number}, is not JSON"
            raise UserError(f"{where}: {error.msg} at its character {error.pos + 1}.") from error
        except RecursionError:
            raise UserError(f"{path}, line {number}, is nested too deeply.") from None
        except ValueError as error:
            raise UserError(f"{path}, line {number}, can't be read: {error}.") from error
        if not isinstance(record, dict):
            raise UserError(f'{path}, line {number}, is no record: each line must be like {{"{fields[0]}": "..."}}.')
        found = cast("dict[str, Any]", record)
        yield number, tuple(text_of(found, field, f"{path}, line {number},") for field in fields)


def _table(file: BinaryIO, path: Path, fields: Sequence[str], delimiter: str, limit: int) -> Iterator[Record]:
    text = io.TextIOWrapper(file, encoding="utf-8-sig", newline="")
    header: list[str] = []
    columns: list[int] = []
    begin, size = 1, 0

    def lines() -> Iterator[str]:
        nonlocal size
        for line in iter(partial(text.readline, limit + 1), ""):
            size += utf8_length(line)
            if size > limit:
                raise _too_large(limit, path, begin)
            yield line

    rows = csv.reader(lines(), delimiter=delimiter, strict=True)
    try:
        while (row := _next_row(rows)) is not None:
            if row and not header:
                header = row
                for field in fields:
                    if (count := header.count(field)) > 1:
                        raise UserError(f"{path} has {count} fields called {field!r}: give them different names.")
                    if not count:
                        raise UserError(f"{path} {unknown_field(field, header)}")
                columns = [header.index(field) for field in fields]
            elif row:
                if len(row) != len(header):
                    own = f"{len(row)} field{'s' if len(row) > 1 else ''}"
                    raise UserError(f"{path}, line {begin}, has {own}, and the header has {len(header)}.")
                yield begin, tuple(row[column] for column in columns)
            begin, size = rows.line_num + 1, 0
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text, from line {begin} on: {error.reason}.") from error
    except csv.Error as error:
        raise UserError(
            f"{path}, line {begin}, can't be read: {error} (a quote inside a quoted field must be doubled)."
        ) from error
    finally:
        text.detach()


def _next_row(rows: Iterator[list[str]]) -> list[str] | None:
    # The limit is one for all readers of the process, and 131,072 characters are too few for a document.
    limit = csv.field_size_limit((1 << 31) - 1)
    try:
        return next(rows, None)
    finally:
        csv.field_size_limit(limit)


def _parquet(file: BinaryIO, path: Path, fields: Sequence[str], limit: int) -> Iterator[Record]:
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError as error:
        raise UserError(f"Reading {path} needs pyarrow: pip install 'anyformer[data]'.") from error
    try:
        with tempfile.TemporaryFile() as unpacked:
            source: Any = file
            if path.suffix.lower() != ".parquet":
                # The index of a parquet file is at its end, so it can't be read as a stream.
                shutil.copyfileobj(file, unpacked)
                source = unpacked
            table = parquet.ParquetFile(source, buffer_size=_BUFFER)
            for field in fields:
                _require_text(table.schema_arrow, field, path)
            groups = (table.metadata.row_group(index).total_byte_size for index in range(table.num_row_groups))
            Expansion(path).add(sum(groups))
            expansion = Expansion(path)
            batches = table.iter_batches(_ROWS, columns=list(fields), use_threads=False)
            rows = (row for batch in batches for row in cast("list[dict[str, Any]]", batch.to_pylist()))
            for number, row in enumerate(rows, start=1):
                texts = tuple(text_of(row, field, f"{path}, row {number},") for field in fields)
                for text in texts:
                    check_size(text, limit, path, number, "row")
                expansion.add(sum(map(len, texts), _ROW_BYTES))
                yield number, texts
    except (pa.ArrowException, ValueError) as error:  # ValueError: text that is not UTF-8
        line = str(error).splitlines()[0]
        raise UserError(f"{path} is not a whole parquet file: {line}.") from error


def _require_text(schema: Any, field: str, path: Path) -> None:
    """Raise UserError where a parquet file has no such field, or one that holds something else than text."""
    from pyarrow import types

    inside: list[Any] = list(schema)
    name, kind = field, None
    while kind is None:
        known = {each.name: each.type for each in inside}
        first, dot, rest = name.partition(".")
        kind = known.get(name)
        if kind is None:
            if not dot or first not in known or not types.is_struct(known[first]):
                raise UserError(f"{path} {unknown_field(field, schema.names)}")
            inside, name = list(known[first]), rest
    text = kind.value_type if types.is_dictionary(kind) else kind
    tests = (types.is_string, types.is_large_string, types.is_string_view, types.is_null)
    if not any(test(text) for test in tests):
        raise UserError(f"{path} has no text in its field {field!r}: that is of type {kind}. Name another field.")
