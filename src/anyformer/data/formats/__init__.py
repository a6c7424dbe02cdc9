"""Formats of files of data, one module each: what is in a file, record by record, in bounded memory.

Bytes that are not UTF-8 raise UnicodeDecodeError, of which `input_files.opened` makes a sentence.
"""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO, Literal

from anyformer.errors import UserError

Kind = Literal["line", "row"]
"""Unit in which the records of a file are counted."""


@dataclass(frozen=True, slots=True)
class Location:
    """The file, and the number of the line or row in it (from 1), that something was read from."""

    path: Path
    number: int
    kind: Kind = "line"

    def __str__(self) -> str:
        return f"{self.path}, {self.kind} {self.number}"


def too_large(limit: int, path: Path, number: int, kind: Kind = "line") -> UserError:
    """The error for a record with more bytes than it may have."""
    return UserError(
        f"{path}, {kind} {number}, has more than {limit:,} bytes: if that is meant to be, raise --max-record-bytes."
    )


def byte_lines(file: BinaryIO, limit: int) -> Iterator[bytes]:
    """The lines of a file with their ends; one of more than `limit` bytes comes in parts that are longer than that."""
    return iter(partial(file.readline, min(limit, sys.maxsize - 2) + 2), b"")


def null_character() -> UnicodeDecodeError:
    """The error for a null character, which no text has."""
    return UnicodeDecodeError("utf-8", b"\0", 0, 1, "a null character")


def utf8_length(text: str) -> int:
    """The length of a text in UTF-8."""
    return len(text) if text.isascii() else len(text.encode("utf-8"))
