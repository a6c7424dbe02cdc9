"""JSON: an object a line, an array of objects, or an object that holds such an array as its "data"."""

import codecs
import json
import re
from collections.abc import Iterable, Iterator
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO, cast

from anyformer.data.formats import Kind, not_text, too_large
from anyformer.errors import UserError

JsonRecord = tuple[int, dict[str, Any]]
"""The line or row, from 1, and the object."""

_BLOCK = 1 << 18
_SPACE = re.compile(r"[ \t\n\r]*")
_OPENS = re.compile(rb'\s*\{\s*("[^"]*"\s*:\s*[\[{]?\s*)?$')
"""The first line of an object that goes on in the next line."""
_LONGEST_LITERAL = 12
"""Characters of -Infinity or of an escape, and some."""


def json_records(file: BinaryIO, path: Path, limit: int, kind: str, field: str) -> tuple[Kind, Iterator[JsonRecord]]:
    """Read records.

    Args:
        file: The content, decompressed.
        path: Its name, for messages.
        limit: Bytes that a record may have.
        kind: ".jsonl", where each line is an object, or ".json", where what it holds is found out.
        field: A field that a record should have, for messages.

    Returns:
        What they are counted by, and the records.

    Raises:
        UserError: When reading: it is not such JSON, or a record is too large.
    """
    lines = iter(partial(file.readline, limit + 1), b"")
    seen = list[bytes]()
    if kind == ".json":
        for line in lines:
            seen.append(line)
            if line.removeprefix(codecs.BOM_UTF8).strip():
                if _is_document(line.removeprefix(codecs.BOM_UTF8) if len(seen) == 1 else line, limit):
                    return "row", _document(_Parser(file, path, limit, b"".join(seen)), field)
                break
    return "line", _lines(chain(seen, lines), path, limit, field)


def _is_document(line: bytes, limit: int) -> bool:
    """Whether a file that begins with this line is one JSON value, and not one a line."""
    start = line.lstrip()[:1]
    if start != b"{":
        return start == b"["
    if len(line) > limit or _OPENS.match(line):
        return True
    try:
        value: Any = json.loads(line)
    except (ValueError, RecursionError):
        return False
    data = value.get("data")
    return isinstance(data, list) and all(isinstance(each, dict) for each in cast("list[object]", data))


def _lines(lines: Iterable[bytes], path: Path, limit: int, field: str) -> Iterator[JsonRecord]:
    end = 0
    for number, line in enumerate(lines, start=1):
        if len(line) > limit:
            raise too_large(limit, path, number)
        content = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
        end += len(line)
        if not content.strip():
            continue
        try:
            record: object = json.loads(content.decode("utf-8"))
        except UnicodeDecodeError as error:
            raise not_text(path, end - len(content) + error.start, number) from error
        except json.JSONDecodeError as error:
            if b"\0" in content:
                raise not_text(path, end - len(content) + content.index(b"\0"), number) from error
            where = f"{path}, line {number}, is not JSON"
            raise UserError(f"{where}: {error.msg} at its character {error.pos + 1}.") from error
        except RecursionError:
            raise UserError(f"{path}, line {number}, is nested too deeply.") from None
        except ValueError as error:
            raise UserError(f"{path}, line {number}, can't be read: {_first_part(error)}.") from error
        if not isinstance(record, dict):
            raise UserError(f'{path}, line {number}, is no record: each line must be like {{"{field}": "..."}}.')
        yield number, cast("dict[str, Any]", record)


def _first_part(error: ValueError) -> str:
    """Python's message on an integer of thousands of digits, without its advice to programmers."""
    return str(error).partition(";")[0]


class _Parser:
    """The values of a JSON text, of which no more than one is in memory."""

    def __init__(self, file: BinaryIO, path: Path, limit: int, start: bytes) -> None:
        self.path = path
        self._file, self._limit, self._start = file, limit, start
        self._decoder, self._scanner = codecs.getincrementaldecoder("utf-8-sig")(), json.JSONDecoder()
        self._text, self._at, self._line, self._read = "", 0, 1, 0

    def peek(self) -> str:
        """The next character that is no space; "" at the end."""
        while True:
            space = _SPACE.match(self._text, self._at)
            assert space is not None
            self._advance(space.end())
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._more():
                return ""

    def take(self, *allowed: str) -> str:
        """Read one of the allowed characters. Raises UserError for another one."""
        found = self.peek()
        if found not in allowed or not found:
            expected = " or ".join(repr(each) for each in allowed)
            own = f"there is {found!r}" if found else "the file ends"
            raise self.error(f"expecting {expected}, where {own},")
        self._at += 1
        return found

    def value(self, number: int) -> Any:
        """Read a value. Raises UserError where there is none, or where it has too many bytes for record `number`."""
        self.peek()
        while True:
            try:
                value, end = self._scanner.raw_decode(self._text, self._at)
            except json.JSONDecodeError as error:
                cut = error.msg.startswith("Unterminated") or error.pos > len(self._text) - _LONGEST_LITERAL
                if cut and len(self._text) - self._at > self._limit:
                    raise too_large(self._limit, self.path, number, "row") from None
                if cut and self._more():
                    continue
                self._advance(error.pos)
                raise self.error(f"{error.msg}") from error
            except RecursionError:
                raise UserError(f"{self.path}, row {number}, is nested too deeply.") from None
            except ValueError as error:
                raise UserError(f"{self.path}, row {number}, can't be read: {_first_part(error)}.") from error
            # A number goes on where the next block begins with digits.
            if end < len(self._text) or isinstance(value, dict | list | str) or not self._more():
                break
        if len(self._text[self._at : end].encode("utf-8", "surrogatepass")) > self._limit:
            raise too_large(self._limit, self.path, number, "row")
        self._advance(end)
        return value

    def error(self, what: str) -> UserError:
        """The error for a fault at this place."""
        return UserError(f"{self.path} is not JSON: {what} in line {self._line}.")

    def _advance(self, to: int) -> None:
        self._line += self._text.count("\n", self._at, to)
        self._at = to

    def _more(self) -> bool:
        """Read a block, as large as what is held, so that each character is looked at a few times only."""
        held = len(self._text) - self._at
        block = self._start or self._file.read(max(_BLOCK, min(held, self._limit + 1 - held)))
        self._start = b""
        offset = self._read - len(self._decoder.getstate()[0])
        try:
            text = self._decoder.decode(block, final=not block)
        except UnicodeDecodeError as error:
            raise not_text(self.path, offset + error.start) from error
        self._read += len(block)
        self._text, self._at = self._text[self._at :] + text, 0
        return bool(block)


def _document(parser: _Parser, field: str) -> Iterator[JsonRecord]:
    if parser.peek() == "[":
        yield from _elements(parser, field)
    else:
        found, end = False, parser.take("{")
        if parser.peek() == "}":
            end = parser.take("}")
        while end != "}":
            if parser.peek() != '"':
                raise parser.error("expecting a name in quotes")
            name: str = parser.value(1)
            parser.take(":")
            if name == "data" and not found and parser.peek() == "[":
                found = True
                yield from _elements(parser, field)
            else:
                parser.value(1)
            end = parser.take(",", "}")
        if not found:
            raise UserError(
                f'{parser.path} holds one object: records are an array of objects, an object a line, or {{"data": '
                "[...]}."
            )
    if parser.peek():
        raise parser.error("there is more after its end")


def _elements(parser: _Parser, field: str) -> Iterator[JsonRecord]:
    parser.take("[")
    if parser.peek() == "]":
        parser.take("]")
        return
    number, end = 0, ","
    while end == ",":
        number += 1
        record = parser.value(number)
        if not isinstance(record, dict):
            raise UserError(f'{parser.path}, row {number}, is no record: each must be like {{"{field}": "..."}}.')
        yield number, cast("dict[str, Any]", record)
        end = parser.take(",", "]")
