"""Formats of files of data, one module each: what is in a file, record by record, in bounded memory."""

from pathlib import Path
from typing import Literal

from anyformer.errors import UserError

Kind = Literal["line", "row"]
"""What the records of a file are counted by."""


def not_text(path: Path, offset: int, line: int | None = None) -> UserError:
    """What to raise for a byte that can't be part of a text."""
    where = path if line is None else f"{path}, line {line},"
    return UserError(f"{where} is not UTF-8 text: byte {offset} can't be part of a text.")


def check_size(text: str, limit: int, path: Path, number: int, kind: Kind = "line") -> None:
    """Raise UserError for a text with more bytes than a record may have."""
    if len(text) > limit or (4 * len(text) > limit and len(text.encode("utf-8", "surrogatepass")) > limit):
        raise too_large(limit, path, number, kind)


def too_large(limit: int, path: Path, number: int, kind: Kind = "line") -> UserError:
    """What to raise for a record with more bytes than it may have."""
    return UserError(
        f"{path}, {kind} {number}, has more than {limit:,} bytes: if that is meant to be, raise --max-record-bytes."
    )


def utf8_length(text: str) -> int:
    """The length of a text in UTF-8."""
    return len(text) if text.isascii() else len(text.encode("utf-8"))
