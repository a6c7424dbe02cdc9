"""Encodings of text: which one a file seems to have that is not UTF-8, and where that shows first."""

from __future__ import annotations

import codecs
import re
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path

from anyformer.data.input_files import COMPRESSED, opened
from anyformer.errors import UserError

_PART = 1 << 20
"""Bytes of a line that are looked at together."""
_UTF16 = re.compile(rb"([^\0][\0-\x05])*[^\0]?"), re.compile(rb"([\0-\x05][^\0])*\0?")
"""Western text in UTF-16: every other byte is small; little and big endian."""
_TELLING_BYTES = 64
_CONTROLS = re.compile(rb"[\0-\x08\x0e-\x1f\x7f]")
"""Bytes of binary files."""
_UNDEFINED = re.compile(rb"[\x81\x8d\x8f\x90\x9d]")
"""Bytes without a character in Windows' code page 1252."""
_OUTSIDE_LATIN_1 = re.compile(rb"[\x80-\x9f]")
"""Controls in Latin-1, quotes and dashes in Windows' code page 1252, which is the same otherwise."""
_LETTERS = re.compile(rb"[\x80-\xff]{3}")
"""Letters that western text hardly has side by side, as others, of two bytes each, do."""


@dataclass(frozen=True, slots=True)
class Fault:
    """The first bytes of a file that are not UTF-8.

    Attributes:
        line: The number of their line, from 1; None: unknown.
        offset: Of the first of them.
        encoding: The encoding that the file seems to have, as iconv calls it; None: it may be any, or no text.
        name: The encoding, for people.
    """

    line: int | None
    offset: int
    encoding: str | None = None
    name: str = ""


def find_fault(path: Path) -> Fault | None:
    """The first fault of a file; None: there is no such file, or it has none."""
    decoder, number, offset = codecs.getincrementaldecoder("utf-8")(), 1, 0
    try:
        with opened(path) as file:
            for part in chain(iter(partial(file.readline, _PART), b""), [b""]):
                if offset == 0 and (wide := _utf16(part)):
                    return Fault(1, 0, wide, "UTF-16")
                held = len(decoder.getstate()[0])
                try:
                    decoder.decode(part, final=not part)
                except UnicodeDecodeError as error:
                    at = offset - held + error.start
                    return Fault(number, at, *_western(part)) if part else Fault(number, at)
                if (at := part.find(b"\0")) >= 0:
                    return Fault(number, offset + at)
                number += part.endswith(b"\n")
                offset += len(part)
    except UserError:
        pass
    return None


def compressed(path: Path) -> str | None:
    """The command that decompresses a file to standard output; None: it is not compressed."""
    suffix = path.suffix.lower()
    return f"{'gzip' if suffix == '.gz' else 'zstd'} -dc" if suffix in COMPRESSED else None


def _utf16(start: bytes) -> str | None:
    """The kind of UTF-16 that a file begins with: a byte-order mark, or western text."""
    if start[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return "UTF-16"  # iconv reads the mark
    start = start[:_TELLING_BYTES]
    kinds = zip(_UTF16, ("UTF-16LE", "UTF-16BE"), strict=True)
    return next((kind for pattern, kind in kinds if b"\0" in start and pattern.fullmatch(start)), None)


def _western(line: bytes) -> tuple[str, str] | tuple[()]:
    """The encoding of western text, and its name for people; () where a line is no such text."""
    if _CONTROLS.search(line) or _UNDEFINED.search(line) or _LETTERS.search(line):
        return ()
    if _OUTSIDE_LATIN_1.search(line):
        return "WINDOWS-1252", "Windows-1252 (Latin-1 with curly quotes)"
    return "ISO-8859-1", "Latin-1"
