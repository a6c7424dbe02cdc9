"""Records: the lines of jsonl, the rows of csv, tsv and parquet, and the fields in them that hold text."""

import codecs
import csv
import io
import json
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, cast

from anyformer.data.input_files import opened, suffix_of
from anyformer.errors import UserError, nearest

Record = tuple[int, tuple[str, ...]]
"""The line or row it begins at, counted from 1, and the text of each wanted field, "" for null."""

_ROWS = 1024
_SURROGATE = re.compile("[\ud800-\udfff]")
"""JSON can spell one without its other half, and UTF-8 cannot."""
_MISSING = object()


def records(path: Path, fields: Sequence[str]) -> Iterator[Record]:
    """Read fields of a file's records, in order.

    Args:
        path: .jsonl, .json (one object a line), .csv or .tsv (with a header) or .parquet, compressed or not.
        fields: their names; a field inside another is written with a dot, `translation.de`.

    Raises:
        UserError: the file can't be read; a line or row is faulty, or a field is missing or no text (with the number).
    """
    kind = suffix_of(path)
    with opened(path) as file:
        if kind == ".parquet":
            yield from _parquet(file, path, fields)
        elif kind in (".csv", ".tsv"):
            yield from _table(file, path, fields, "," if kind == ".csv" else "\t")
        else:
            yield from _lines(file, path, fields)


def not_text(path: Path, offset: int) -> UserError:
    """What to raise for a byte that can't be part of a text."""
    return UserError(f"{path} is not UTF-8 text: byte {offset} can't be part of a text.")


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
    others = "" if hint.startswith("choose") or not known else f" It has {', '.join(map(repr, known))}."
    return f"has no field {field!r}: {hint}{others}" + ("" if hint.endswith("?") else ".")


def _find(record: Mapping[str, Any], field: str) -> object:
    if field in record:
        return record[field]
    first, dot, rest = field.partition(".")
    inner: object = record.get(first) if dot else None
    return _find(cast("Mapping[str, Any]", inner), rest) if isinstance(inner, Mapping) else _MISSING


def _lines(file: BinaryIO, path: Path, fields: Sequence[str]) -> Iterator[Record]:
    end = 0
    for number, line in enumerate(file, start=1):
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
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path}, line {number}, can't be read: {error}.") from error
        if not isinstance(record, dict):
            raise UserError(f'{path}, line {number}, is no record: each line must be like {{"{fields[0]}": "..."}}.')
        found = cast("dict[str, Any]", record)
        yield number, tuple(text_of(found, field, f"{path}, line {number},") for field in fields)


def _table(file: BinaryIO, path: Path, fields: Sequence[str], delimiter: str) -> Iterator[Record]:
    text = io.TextIOWrapper(file, encoding="utf-8-sig", newline="")
    rows = csv.reader(text, delimiter=delimiter, strict=True)
    header: list[str] = []
    columns: list[int] = []
    begin = 1
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
            begin = rows.line_num + 1
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


def _parquet(file: BinaryIO, path: Path, fields: Sequence[str]) -> Iterator[Record]:
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError as error:
        raise UserError(f"Reading {path} needs pyarrow: pip install 'anyformer[data]'.") from error
    try:
        with tempfile.TemporaryFile() as unpacked:
            source: Any = path
            if path.suffix.lower() != ".parquet":
                # The index of a parquet file is at its end, so it can't be read as a stream.
                shutil.copyfileobj(file, unpacked)
                source = unpacked
            table = parquet.ParquetFile(source)
            names: list[str] = table.schema_arrow.names
            columns = {field: field if field in names else field.partition(".")[0] for field in fields}
            for field, column in columns.items():
                if column not in names:
                    raise UserError(f"{path} {unknown_field(field, names)}")
            batches = table.iter_batches(_ROWS, columns=list(dict.fromkeys(columns.values())), use_threads=False)
            rows = (row for batch in batches for row in cast("list[dict[str, Any]]", batch.to_pylist()))
            for number, row in enumerate(rows, start=1):
                yield number, tuple(text_of(row, field, f"{path}, row {number},") for field in fields)
    except pa.ArrowException as error:
        line = str(error).splitlines()[0]
        raise UserError(f"{path} is not a whole parquet file: {line}.") from error
