"""Formats of files of data, one module each: what is in a file, record by record, in bounded memory."""

import shlex
from pathlib import Path
from typing import Literal

from anyformer.data.encodings import Fault, compressed, find_fault
from anyformer.errors import UserError

Kind = Literal["line", "row"]
"""Unit in which the records of a file are counted."""


def not_text(path: Path, offset: int | None = None, line: int | None = None) -> UserError:
    """Exception for bytes that are not UTF-8, with the first line that has such, and the command that mends the file.

    Args:
        path: The file, which is read once more; without it neither its line nor its encoding are known.
        offset: Of the first such byte; None: it is looked for.
        line: That it is in; None: it is looked for.
    """
    fault = find_fault(path) or Fault(line, offset or 0)
    where = path if fault.line is None else f"{path}, line {fault.line},"
    at = fault.offset if offset is None else offset
    reason = f"{where} is not UTF-8 text: byte {at} can't be part of a text."
    return UserError(reason if fault.encoding is None else f"{reason} {_conversion(path, fault)}")


def _conversion(path: Path, fault: Fault) -> str:
    """Sentence with the command that makes UTF-8 of a file."""
    unpack = compressed(path)
    name = path.with_suffix("") if unpack else path
    source, target = shlex.quote(str(path)), shlex.quote(str(name.with_name(f"{name.stem}-utf8{name.suffix}")))
    command = f"iconv -f {fault.encoding} -t UTF-8"
    whole = f"{unpack} {source} | {command} > {target}" if unpack else f"{command} {source} > {target}"
    return f"It looks like {fault.name}, which this command converts: {whole}"


def check_size(text: str, limit: int, path: Path, number: int, kind: Kind = "line") -> None:
    """Raise UserError for a text with more bytes than a record may have."""
    if len(text) > limit or (4 * len(text) > limit and len(text.encode("utf-8", "surrogatepass")) > limit):
        raise too_large(limit, path, number, kind)


def too_large(limit: int, path: Path, number: int, kind: Kind = "line") -> UserError:
    """The error for a record with more bytes than it may have."""
    return UserError(
        f"{path}, {kind} {number}, has more than {limit:,} bytes: if that is meant to be, raise --max-record-bytes."
    )


def utf8_length(text: str) -> int:
    """The length of a text in UTF-8."""
    return len(text) if text.isascii() else len(text.encode("utf-8"))
