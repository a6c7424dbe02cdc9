"""Records: rows whose fields hold text."""

import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from anyformer import limits
from anyformer.data.rows import check_characters, read_file, unknown_field
from anyformer.errors import UserError, quote

Record = tuple[int, tuple[str, ...]]
"""The line or row it begins at, counted from 1, and the text of each wanted field, "" for null."""

MISSING = object()


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
    for row in read_file(path, record_limit(max_record_bytes), fields):
        texts = list[str]()
        for field in fields:
            text = row.values.get(field)
            if type(text) is not str or not text.isascii():
                text = text_of(row.values, field, f"{row.where},")
            texts.append(text)
        yield row.where.number, tuple(texts)


def record_limit(max_record_bytes: int) -> int:
    """The bytes that a record may have, as a number that can be read at once."""
    return min(max_record_bytes, sys.maxsize - 1)


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


def find(record: Mapping[str, Any], field: str) -> object:
    """The value of a field, which may be inside others, `translation.de`; `MISSING` where there is none."""
    found: Any = record
    while isinstance(found, Mapping):
        if field in found:
            return found[field]
        first, dot, field = field.partition(".")
        found = found.get(first) if dot else None
    return MISSING
