"""Text files: block by block, line by line, or whole."""

import codecs
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from anyformer import limits
from anyformer.data.formats import check_size, not_text, utf8_length
from anyformer.data.input_files import opened
from anyformer.errors import UserError

_BLOCK = 1 << 18


def decoded(file: BinaryIO, path: Path) -> Iterator[str]:
    """Decode a file block by block, dropping a byte-order mark and refusing what is not text."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    read = 0
    while True:
        block = file.read(_BLOCK)
        offset = read - len(decoder.getstate()[0])
        try:
            text = decoder.decode(block, final=not block)
        except UnicodeDecodeError as error:
            raise not_text(path, offset + error.start) from error
        if "\0" in text:
            raise not_text(path, offset + len(text[: text.index("\0")].encode("utf-8")))
        if offset == 0:
            text = text.removeprefix("\ufeff")
        if text:
            yield text
        if not block:
            return
        read += len(block)


def text_lines(path: Path, max_record_bytes: int = limits.RECORD_BYTES) -> Iterator[str]:
    """Yield the lines of a text file without their ends, which are \\n or \\r\\n.

    Raises:
        UserError: as `decoded`; a line has more bytes than a record may have.
    """
    rest, number = "", 0
    with opened(path) as file:
        for text in decoded(file, path):
            *lines, rest = (rest + text).split("\n")
            for line in lines:
                number += 1
                check_size(line, max_record_bytes, path, number)
                yield line.removesuffix("\r")
            check_size(rest, max_record_bytes, path, number + 1)
    if rest:
        yield rest.removesuffix("\r")


def whole_text(file: BinaryIO, path: Path, limit: int) -> str:
    """The text of a file. Raises UserError where it has more bytes than a row may have."""
    blocks, size = list[str](), 0
    for block in decoded(file, path):
        size += utf8_length(block)
        if size > limit:
            raise UserError(
                f"{path} has more than {limit:,} bytes, and a text file is one example: split it, or raise "
                "--max-record-bytes."
            )
        blocks.append(block)
    return "".join(blocks)
