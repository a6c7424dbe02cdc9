"""Tables in text: csv and tsv."""

import csv
import io
from collections.abc import Iterator
from functools import partial
from itertools import chain
from pathlib import Path
from typing import BinaryIO

from anyformer.data.formats import not_text, too_large, utf8_length
from anyformer.errors import UserError

_DELIMITERS = ",;\t"
"""Delimiters of .csv files: spreadsheets write semicolons where the comma is that of decimals."""


def table_rows(file: BinaryIO, path: Path, limit: int, width: int | None = None) -> Iterator[tuple[int, list[str]]]:
    """Read the rows of a .csv or .tsv file.

    Args:
        file: Its content, decompressed.
        path: Its name, for messages and the delimiter.
        limit: Bytes that a row may have.
        width: Number of columns, by which the delimiter of a .csv file is known; None: it is the first that the first
            line has, of comma, semicolon and tab.

    Yields:
        The line that a row begins at, from 1, and its fields; rows without any are passed over. The first row may be
        a header.

    Raises:
        UserError: The file is faulty, or a row is too large.
    """
    text = io.TextIOWrapper(file, encoding="utf-8-sig", newline="")
    begin, size = 1, 0

    def lines() -> Iterator[str]:
        nonlocal size
        for line in iter(partial(text.readline, limit + 1), ""):
            size += utf8_length(line)
            if size > limit:
                raise too_large(limit, path, begin)
            yield line

    try:
        source = lines()
        if "\0" in (first := next(source, "")):  # UTF-16 without a byte-order mark
            raise not_text(path)
        is_tsv = ".tsv" in [suffix.lower() for suffix in path.suffixes[-2:]]
        delimiter = "\t" if is_tsv else _delimiter(first, width)
        rows = csv.reader(chain([first], source), delimiter=delimiter, strict=True)
        while (row := _next_row(rows)) is not None:
            if row:
                yield begin, row
            begin, size = rows.line_num + 1, 0
    except UnicodeDecodeError as error:
        raise not_text(path) from error
    except csv.Error as error:
        raise UserError(
            f"{path}, line {begin}, can't be read: {error} (a quote inside a quoted field must be doubled)."
        ) from error
    finally:
        if not file.closed:  # as it is where its reader was left in the middle
            text.detach()


def check_width(row: list[str], width: int, path: Path, number: int, header: str = "the header has") -> None:
    """Raise UserError for a row that has not as many fields as the header."""
    if len(row) != width:
        own = f"{len(row)} field{'s' if len(row) > 1 else ''}"
        raise UserError(f"{path}, line {number}, has {own}, and {header} {width}.")


def _delimiter(first: str, width: int | None) -> str:
    """The delimiter of a table with this first line and, if it is known, this many columns."""
    fields = {each: len(_next_row(csv.reader([first], delimiter=each)) or ()) for each in _DELIMITERS}
    return next((each for each in _DELIMITERS if (fields[each] == width if width else fields[each] > 1)), ",")


def _next_row(rows: Iterator[list[str]]) -> list[str] | None:
    # The limit is one for all readers of the process, and 131,072 characters are too few for a document.
    limit = csv.field_size_limit((1 << 31) - 1)
    try:
        return next(rows, None)
    finally:
        csv.field_size_limit(limit)
