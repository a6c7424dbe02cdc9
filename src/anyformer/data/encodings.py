"""Encodings of text: the one that a file seems to have which is not UTF-8, and the place where that shows first."""

import codecs
import re
import shlex
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import BinaryIO

_PART = 1 << 20
"""Bytes of a line that are looked at together."""
_UTF16 = {
    "UTF-16LE": re.compile(rb"([^\0][\0-\x05])*[^\0]?"),
    "UTF-16BE": re.compile(rb"([\0-\x05][^\0])*\0?"),
}
"""Western text in UTF-16: every other byte is small."""
_TELLING_BYTES = 64
_NOT_WESTERN = re.compile(rb"[\0-\x08\x0e-\x1f\x7f\x81\x8d\x8f\x90\x9d]|[\x80-\xff]{3}")
"""Bytes of binary files; those without a character in Windows' code page 1252; letters that western text hardly has
side by side, as others, of two bytes each, do."""
_OUTSIDE_LATIN_1 = re.compile(rb"[\x80-\x9f]")
"""Controls in Latin-1, quotes and dashes in Windows' code page 1252, which is the same otherwise."""


@dataclass(frozen=True, slots=True)
class Fault:
    """The first bytes of a file that are not UTF-8.

    Attributes:
        line: The number of their line, from 1.
        offset: Of the first of them.
        encoding: The encoding that the file seems to have, as iconv calls it; None: it may be any, or no text.
    """

    line: int
    offset: int
    encoding: str | None = None
    name: str = ""


def find_fault(file: BinaryIO) -> Fault | None:
    """The first fault of a file; None: it has none."""
    decoder, number, offset = codecs.getincrementaldecoder("utf-8")(), 1, 0
    for part in chain(iter(partial(file.readline, _PART), b""), [b""]):
        if offset == 0 and (wide := _utf16(part)):
            return Fault(1, 0, wide, "UTF-16")
        held = len(decoder.getstate()[0])
        try:
            decoder.decode(part, final=not part)
        except UnicodeDecodeError as error:
            return Fault(number, offset - held + error.start, *(_western(part) if part else ()))
        if (null := part.find(b"\0")) >= 0:
            return Fault(number, offset + null)
        number += part.endswith(b"\n")
        offset += len(part)
    return None


def conversion(path: Path, fault: Fault, unpack: str | None) -> str:
    """Sentence with the command that makes UTF-8 of a file; `unpack`: the program that decompresses it, or None."""
    name = path.with_suffix("") if unpack else path
    source, target = shlex.quote(str(path)), shlex.quote(str(name.with_name(f"{name.stem}-utf8{name.suffix}")))
    command = f"iconv -f {fault.encoding} -t UTF-8"
    whole = f"{unpack} -dc {source} | {command} > {target}" if unpack else f"{command} {source} > {target}"
    return f"It looks like {fault.name}, which this command converts: {whole}"


def _utf16(start: bytes) -> str | None:
    """The kind of UTF-16 that a file begins with: a byte-order mark, or western text."""
    if start[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
        return "UTF-16"  # iconv reads the mark
    start = start[:_TELLING_BYTES]
    return next((kind for kind, pattern in _UTF16.items() if b"\0" in start and pattern.fullmatch(start)), None)


def _western(line: bytes) -> tuple[str, str] | tuple[()]:
    """The encoding of western text, and its name for people; () where a line is no such text."""
    if _NOT_WESTERN.search(line):
        return ()
    if _OUTSIDE_LATIN_1.search(line):
        return "WINDOWS-1252", "Windows-1252 (Latin-1 with curly quotes)"
    return "ISO-8859-1", "Latin-1"
