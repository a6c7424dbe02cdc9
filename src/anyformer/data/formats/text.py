"""Text files: block by block, line by line, or whole."""

import codecs
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import BinaryIO

from anyformer import limits
from anyformer.data.formats import byte_lines, null_character, too_large, utf8_length
from anyformer.data.input_files import opened
from anyformer.errors import UserError

_BLOCK = 1 << 18


def decoded(file: BinaryIO, encoding: str = "utf-8-sig") -> Iterator[str]:
    """Decode a file block by block, by default dropping a byte-order mark, and refusing what is not text."""
    for text in codecs.iterdecode(iter(partial(file.read, _BLOCK), b""), encoding):
        if "\0" in text:
            raise null_character()
        yield text


def text_lines(path: Path, max_record_bytes: int = limits.RECORD_BYTES) -> Iterator[str]:
    """Yield the lines of a text file without their ends, which are \\n or \\r\\n.

    Raises:
        UserError: the file is not text, or a line has more bytes than a record may have.
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
