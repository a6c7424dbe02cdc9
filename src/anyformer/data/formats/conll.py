"""CoNLL: a word and its tags on each line, and an empty line after each sentence."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import BinaryIO

from anyformer.data.formats import not_text, too_large
from anyformer.errors import UserError

_START = "-DOCSTART-"


def sentences(file: BinaryIO, path: Path, limit: int) -> Iterator[tuple[int, list[str], list[str]]]:
    """Read sentences.

    The word is the first column and the tag the last one; columns are separated by a tab, or else by spaces.
    `-DOCSTART-` and comments (`# ...`) are passed over.

    Args:
        file: The content, decompressed.
        path: Its name, for messages.
        limit: Bytes that a sentence may have.

    Yields:
        The line that a sentence begins at, from 1, its words and their tags.

    Raises:
        UserError: A line is not UTF-8, has a word without a tag, or not as many columns as the others.
    """
    words, tags = list[str](), list[str]()
    begin = size = offset = width = 0
    for number, line in enumerate(iter(partial(file.readline, limit + 1), b""), start=1):
        size += len(line)
        if size > limit:
            raise too_large(limit, path, begin or number)
        try:
            text = line.decode("utf-8")
        except UnicodeDecodeError as error:
            raise not_text(path, offset + error.start, number) from error
        offset += len(line)
        columns = _columns(text.removeprefix("\ufeff") if number == 1 else text)
        if not columns or columns[0] == _START:
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


def _columns(line: str) -> list[str]:
    if "\t" not in line:
        return line.split()
    columns = [column.strip() for column in line.split("\t")]
    return columns if any(columns) else []
