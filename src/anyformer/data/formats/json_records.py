"""JSON: an object a line, an array of objects, or an object that holds such an array as its "data"."""

import codecs
import json
import re
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO, cast

from anyformer.data.formats import Kind, byte_lines, null_character, too_large
from anyformer.errors import UserError

JsonRecord = tuple[int, dict[str, Any]]
"""The line or row, from 1, and the object."""

_BLOCK = 1 << 18
_SPACE = re.compile(r"[ \t\n\r]*")
_OPENS = re.compile(rb'\s*\{\s*("[^"]*"\s*:\s*[\[{]?\s*)?$')
"""The first line of an object that goes on in the next line."""
_LONGEST_LITERAL = 12
"""Characters of -Infinity or of an escape, and some."""


def json_records(
    file: BinaryIO, path: Path, limit: int, kind: str, field: str, first: int = 1
) -> tuple[Kind, Iterator[JsonRecord]]:
    """Read records: the unit that they are counted in, and the number and object of each.

    In a file of the kind ".jsonl" each line is an object, one of the kind ".json" may also be one JSON value. A record
    may have `limit` bytes, and should have a `field`, which messages name. The number of the first line is `first`.
    Reading raises UserError for what is not such JSON, and for a record that is too large.
    """
    lines, start = byte_lines(file, limit), list[bytes]()
    if kind == ".json":
        for line in lines:
            line = line if start else line.removeprefix(codecs.BOM_UTF8)
            start.append(line)
            if line.strip():
                if _is_document(line, limit):
                    return "row", _document(_Parser(file, path, limit, b"".join(start)), field)
                break
    return "line", _lines(chain(start, lines), path, limit, field, first)


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


def _lines(lines: Iterable[bytes], path: Path, limit: int, field: str, first: int) -> Iterator[JsonRecord]:
    for number, line in enumerate(lines, start=first):
        if len(line) > limit:
            raise too_large(limit, path, number)
        text = line.decode("utf-8-sig" if number == 1 else "utf-8")
        if not text.strip():
            continue
        try:
            record: object = json.loads(text)
        except json.JSONDecodeError as error:
            if "\0" in text:
                raise null_character() from error
            location = f"{path}, line {number}, is not JSON"
            raise UserError(f"{location}: {error.msg} at its character {error.pos + 1}.") from error
        except (RecursionError, ValueError) as error:
            raise _unreadable(path, "line", number, error) from None
        if not isinstance(record, dict):
            raise UserError(f'{path}, line {number}, is no record: each line must be like {{"{field}": "..."}}.')
        yield number, cast("dict[str, Any]", record)


def _unreadable(path: Path, kind: Kind, number: int, error: Exception) -> UserError:
    """The error for a record with too many levels, or with an integer of thousands of digits."""
    if isinstance(error, RecursionError):
        return UserError(f"{path}, {kind} {number}, is nested too deeply.")
    return UserError(f"{path}, {kind} {number}, can't be read: {str(error).partition(';')[0]}.")


class _Parser:
    """The values of a JSON text, of which no more than one is in memory."""

    def __init__(self, file: BinaryIO, path: Path, limit: int, start: bytes) -> None:
        self.path = path
        self._file, self._limit, self._scanner = file, limit, json.JSONDecoder()
        self._decoded = codecs.iterdecode(chain([start], self._blocks()), "utf-8")
        self._text, self._position, self._line = "", 0, 1

    def peek(self) -> str:
        """The next character that is no space; "" at the end."""
        while True:
            space = _SPACE.match(self._text, self._position)
            assert space is not None
            self._advance(space.end())
            if self._position < len(self._text):
                return self._text[self._position]
            if not self._more():
                return ""

    def take(self, *allowed: str) -> str:
        """Read one of the allowed characters. Raises UserError for another one."""
        character = self.peek()
        if character not in allowed or not character:
            expected = " or ".join(repr(each) for each in allowed)
            actual = f"there is {character!r}" if character else "the file ends"
            raise self.error(f"expecting {expected}, where {actual},")
        self._position += 1
        return character

    def value(self, number: int) -> Any:
        """Read a value. Raises UserError where there is none, or where it has too many bytes for record `number`."""
        self.peek()
        while True:
            try:
                value, end = self._scanner.raw_decode(self._text, self._position)
            except json.JSONDecodeError as error:
                cut = error.msg.startswith("Unterminated") or error.pos > len(self._text) - _LONGEST_LITERAL
                if cut and len(self._text) - self._position > self._limit:
                    raise too_large(self._limit, self.path, number, "row") from None
                if cut and self._more():
                    continue
                self._advance(error.pos)
                raise self.error(error.msg) from error
            except (RecursionError, ValueError) as error:
                raise _unreadable(self.path, "row", number, error) from None
            # A number goes on where the next block begins with digits.
            if end < len(self._text) or isinstance(value, dict | list | str) or not self._more():
                break
        if len(self._text[self._position : end].encode("utf-8", "surrogatepass")) > self._limit:
            raise too_large(self._limit, self.path, number, "row")
        self._advance(end)
        return value

    def error(self, fault: str) -> UserError:
        """The error for a fault at the current position."""
        return UserError(f"{self.path} is not JSON: {fault} in line {self._line}.")

    def _advance(self, end: int) -> None:
        self._line += self._text.count("\n", self._position, end)
        self._position = end

    def _blocks(self) -> Iterator[bytes]:
        """Blocks as large as the rest of the text, so that each character is looked at a few times only."""
        while True:
            rest = len(self._text) - self._position
            block = self._file.read(max(_BLOCK, min(rest, self._limit + 1 - rest)))
            if not block:
                return
            yield block

    def _more(self) -> bool:
        more = next(self._decoded, "")
        self._text, self._position = self._text[self._position :] + more, 0
        return bool(more)


def _document(parser: _Parser, field: str) -> Iterator[JsonRecord]:
    if parser.peek() == "[":
        yield from _elements(parser, field)
    else:
        has_data = False
        for _ in _items(parser, "{", "}"):
            if parser.peek() != '"':
                raise parser.error("expecting a name in quotes")
            name: str = parser.value(1)
            parser.take(":")
            if name == "data" and not has_data and parser.peek() == "[":
                has_data = True
                yield from _elements(parser, field)
            else:
                parser.value(1)
        if not has_data:
            raise UserError(
                f'{parser.path} holds one object: records are an array of objects, an object a line, or {{"data": '
                "[...]}."
            )
    if parser.peek():
        raise parser.error("there is more after its end")


def _elements(parser: _Parser, field: str) -> Iterator[JsonRecord]:
    for number in _items(parser, "[", "]"):
        record = parser.value(number)
        if not isinstance(record, dict):
            raise UserError(f'{parser.path}, row {number}, is no record: each must be like {{"{field}": "..."}}.')
        yield number, cast("dict[str, Any]", record)


def _items(parser: _Parser, begin: str, end: str) -> Iterator[int]:
    """The number, from 1, of each item of an array or object, which is read before the next one is asked for."""
    parser.take(begin)
    number, separator = 0, ","
    if parser.peek() == end:
        separator = parser.take(end)
    while separator == ",":
        yield (number := number + 1)
        separator = parser.take(",", end)
