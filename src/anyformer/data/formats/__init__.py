"""Formats of files of data: what is in a file, record by record, in bounded memory.

Text is here, and each other format has a module.

Bytes that are not UTF-8 raise UnicodeDecodeError, of which `input_files.opened` makes a sentence.
"""

import codecs
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO, Literal

from anyformer import limits
from anyformer.data.input_files import opened
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


_BLOCK = 1 << 18


def decoded(file: BinaryIO, encoding: str = "utf-8-sig") -> Iterator[str]:
    """Decode a file block by block, by default dropping a byte-order mark, and refusing what is not text."""
    for text in codecs.iterdecode(iter(partial(file.read, _BLOCK), b""), encoding):
        if "\0" in text:
            raise null_character()
        yield text


def text_lines(path: Path, max_record_bytes: int = limits.RECORD_BYTES) -> Iterator[str]:
    """Yield the lines of a text file without their ends, which are \\n or \\r\\n.

    Raises UserError where it is not text, or a line has more bytes than a record may have.
    """
    with opened(path) as file:
        for number, line in enumerate(byte_lines(file, max_record_bytes), start=1):
            content = line.removesuffix(b"\n")
            if len(content) > max_record_bytes:
                raise too_large(max_record_bytes, path, number)
            if b"\0" in content:
                raise null_character()
            yield content.decode("utf-8-sig" if number == 1 else "utf-8").removesuffix("\r")


def whole_text(file: BinaryIO, path: Path, limit: int) -> str:
    """The text of a file. Raises UserError where it has more bytes than a row may have."""
    blocks, size = list[str](), 0
    for block in decoded(file):
        blocks.append(block)
        size += utf8_length(block)
        if size > limit:
            raise UserError(
                f"{path} has more than {limit:,} bytes, and a text file is one example: split it, or raise "
                "--max-record-bytes."
            )
    return "".join(blocks)
