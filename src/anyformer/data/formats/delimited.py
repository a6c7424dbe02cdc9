"""Tables in text: csv, tsv, and the words with tags of CoNLL."""

import csv
import io
from collections.abc import Iterator
from functools import partial
from itertools import chain
from pathlib import Path
from typing import BinaryIO

from anyformer.data.formats import byte_lines, null_character, too_large, utf8_length
from anyformer.errors import UserError

_DELIMITERS = ",;\t"
"""Delimiters of .csv files: spreadsheets write semicolons where the comma is that of decimals."""
_START = "-DOCSTART-"


def table_rows(file: BinaryIO, path: Path, limit: int, width: int | None = None) -> Iterator[tuple[int, list[str]]]:
    """Read the rows of a .csv or .tsv file, each with the line that it begins at; the first one may be a header.

    The delimiter of a .csv file is the first of comma, semicolon and tab that makes `width` columns of its first line,
    or several where that is None. A row may have `limit` bytes; rows without fields are passed over. Raises UserError
    where the file is faulty, or a row is too large.
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
            raise null_character()
        is_tsv = ".tsv" in [suffix.lower() for suffix in path.suffixes[-2:]]
        delimiter = "\t" if is_tsv else _delimiter(first, width)
        rows = csv.reader(chain([first], source), delimiter=delimiter, strict=True)
        while (row := _next_row(rows)) is not None:
            if row:
                yield begin, row
            begin, size = rows.line_num + 1, 0
    except csv.Error as error:
        raise UserError(
            f"{path}, line {begin}, can't be read: {error} (a quote inside a quoted field must be doubled)."
        ) from error
    finally:
        if not file.closed:  # as it is where its reader was left in the middle
            text.detach()


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


def sentences(file: BinaryIO, path: Path, limit: int) -> Iterator[tuple[int, list[str], list[str]]]:
    """Read the sentences of a CoNLL file: the line that each begins at, from 1, its words and their tags.

    There is a word and its tags on each line, and an empty line after each sentence. The word is the first column and
    the tag the last one; columns are separated by a tab, or else by spaces. `-DOCSTART-` and comments (`# ...`) are
    passed over. A sentence may have `limit` bytes. Raises UserError for a larger one, and where a line has a word
    without a tag, or not as many columns as the others.
    """
    words, tags = list[str](), list[str]()
    begin = size = width = 0
    for number, line in enumerate(byte_lines(file, limit), start=1):
        size += len(line)
        if size > limit:
            raise too_large(limit, path, begin or number)
        text = line.decode("utf-8-sig" if number == 1 else "utf-8")
        columns = [column.strip() for column in text.split("\t")] if "\t" in text else text.split()
        if not any(columns) or columns[0] == _START:
            if words:
                yield begin, words, tags
            words, tags, begin, size = [], [], 0, 0
            continue
        if len(columns) != width and text.startswith("# "):
            continue
        if columns[0] == "":
            raise UserError(f"{path}, line {number}, has a tag without a word: each line is a word, a tab and its tag.")
        if len(columns) < 2 or columns[-1] == "":
            raise UserError(f"{path}, line {number}, has a word without a tag: each line is a word, a tab and its tag.")
        if width and len(columns) != width:
            raise UserError(f"{path}, line {number}, has {len(columns)} columns, and the lines before have {width}.")
        width = len(columns)
        begin = begin or number
        words.append(columns[0])
        tags.append(columns[-1])
    if words:
        yield begin, words, tags
