"""Records: the lines of jsonl, the rows of json, csv, tsv and parquet, and the fields in them that hold text."""

import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from anyformer import limits
from anyformer.data.formats import Kind, check_size
from anyformer.data.formats.delimited import check_width, table_rows
from anyformer.data.formats.json_records import json_records
from anyformer.data.formats.parquet import open_parquet, parquet_rows
from anyformer.data.input_files import ROW_BYTES, Expansion, counted, opened, suffix_of
from anyformer.errors import UserError, nearest, quote

Record = tuple[int, tuple[str, ...]]
"""The line or row it begins at, counted from 1, and the text of each wanted field, "" for null."""

MISSING = object()
_SURROGATE = re.compile("[\ud800-\udfff]")
"""JSON can spell one without its other half, and UTF-8 cannot."""
_FEW = 20
"""Names of fields that a message lists."""


def records(path: Path, fields: Sequence[str], max_record_bytes: int = limits.RECORD_BYTES) -> Iterator[Record]:
    """Read fields of a file's records, in order.

    Args:
        path: .jsonl, .json (an array of objects, an object a line, or {"data": [...]}), .csv or .tsv (with a header)
            or .parquet, compressed or not.
        fields: their names; a field inside another is written with a dot, `translation.de`.
        max_record_bytes: the size that a line, or the wanted text of a row, may have.

    Raises:
        UserError: the file can't be read; a line or row is faulty or too large, or a field is missing or no text (with
            the number).
    """
    kind = suffix_of(path)
    limit = record_limit(max_record_bytes)
    with opened(path) as file:
        if kind == ".parquet":
            with open_parquet(file, path) as table:
                for field in fields:
                    _require_text(table.schema_arrow, field, path)
                expansion = Expansion(path)
                for number, row in parquet_rows(table, fields):
                    texts = _texts(row, fields, path, "row", number)
                    for text in texts:
                        check_size(text, limit, path, number, "row")
                    expansion.add(sum(map(len, texts), ROW_BYTES))
                    yield number, texts
        elif kind in (".csv", ".tsv"):
            rows = table_rows(file, path, limit)
            header = next(rows, (1, []))[1]
            columns = [column_of(field, header, path) for field in fields] if header else []
            for number, row in counted(rows, path):
                if len(row) != len(header):
                    check_width(row, len(header), path, number)
                yield number, tuple([row[column] for column in columns])
        else:
            unit, objects = json_records(file, path, limit, kind or ".jsonl", fields[0])
            for number, record in counted(objects, path):
                yield number, _texts(record, fields, path, unit, number)


def record_limit(max_record_bytes: int) -> int:
    """The bytes that a record may have, as a number that can be read at once."""
    return min(max_record_bytes, sys.maxsize - 1)


def column_of(field: str, header: Sequence[str], path: Path) -> int:
    """The place of a field in a header. Raises UserError where it isn't there once."""
    if (count := header.count(field)) > 1:
        raise UserError(f"{path} has {count} fields called {quote(field)}: give them different names.")
    if not count:
        raise UserError(f"{path} {unknown_field(field, header)}")
    return header.index(field)


def _texts(record: Mapping[str, Any], fields: Sequence[str], path: Path, kind: Kind, number: int) -> tuple[str, ...]:
    texts = list[str]()
    for field in fields:
        text = record.get(field)
        if type(text) is not str or not (text.isascii() or _SURROGATE.search(text) is None):
            text = text_of(record, field, f"{path}, {kind} {number},")
        texts.append(text)
    return tuple(texts)


def text_of(record: Mapping[str, Any], field: str, where: str) -> str:
    """Return the text of a field, "" for null; raises UserError where there is none."""
    value = find(record, field)
    if value is MISSING:
        raise UserError(f"{where} {unknown_field(field, record)}")
    if value is None:
        return ""
    if not isinstance(value, str):
        kind = type(value).__name__
        raise UserError(f"{where} has no text in its field {quote(field)}: that is of type {kind}. Name another field.")
    check_characters(value, where)
    return value


def check_characters(text: str, where: object) -> None:
    """Raise UserError for a text that UTF-8 can't hold."""
    if not text.isascii() and _SURROGATE.search(text):
        raise UserError(f"{where} holds half a character: a \\ud800 without its other half.")


def unknown_field(field: str, names: Iterable[str], noun: str = "field") -> str:
    """Say that there is no such field, and which ones there are."""
    known = [str(name) for name in names]
    hint = nearest(field, known)
    some = [repr(name) for name in known[:_FEW]] + ["..."] * (len(known) > _FEW)
    others = "" if hint.startswith("choose") or not known else f" It has {', '.join(some)}."
    return f"has no {noun} {quote(field)}: {hint}{others}" + ("" if hint.endswith("?") else ".")


def find(record: Mapping[str, Any], field: str) -> object:
    """The value of a field, which may be inside others, `translation.de`; `MISSING` where there is none."""
    found: Any = record
    while isinstance(found, Mapping):
        if field in found:
            return found[field]
        first, dot, field = field.partition(".")
        found = found.get(first) if dot else None
    return MISSING


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
        raise UserError(f"{path} has no text in its field {quote(field)}: that is of type {kind}. Name another field.")
