"""Files and folders to documents.

A document is a text file, or the `text` field of one line of a jsonl file; either may be gzipped. A text file
of more than PIECE characters comes in several pieces, so that no file is ever in memory whole; a piece ends
at a line end that is followed by text, where tokenizers that split words never join.
"""

from __future__ import annotations

import codecs
import gzip
import io
import json
import os
import sysconfig
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from anyformer.errors import UserError

TEXT_SUFFIXES = (".txt", ".md", ".py")
SUFFIXES = (*TEXT_SUFFIXES, ".jsonl")
PIECE = 1 << 17
"""Characters that a piece of a text file has at most; a longer line is cut anyway."""

_BLOCK = 1 << 18
_NOT_LIBRARY = frozenset({"site-packages", "dist-packages", "test", "tests", "idle_test", "turtledemo", "__pycache__"})

Paths = str | os.PathLike[str] | Iterable[str | os.PathLike[str]]


@dataclass(frozen=True, slots=True)
class Document:
    """A text and where it came from.

    Attributes:
        text: never empty.
        path: its file.
        line: the line of a jsonl file, from 1; None for a text file.
        last: False when the next document continues this text.
    """

    text: str
    path: Path
    line: int | None = None
    last: bool = True


def supported() -> str:
    """The file kinds that can be read, as people write them."""
    return ", ".join(SUFFIXES) + " (each also as .gz)"


def suffix_of(path: Path) -> str | None:
    """Return the supported suffix of a file, looking through a final .gz; None where it has none."""
    name = path.name.lower().removesuffix(".gz")
    return next((suffix for suffix in SUFFIXES if name.endswith(suffix)), None)


def find_files(paths: Paths) -> list[Path]:
    """Return the files that `paths` name: files as given, folders with everything readable in them, sorted.

    Hidden files and folders are passed over, and so are files of other kinds inside a folder.

    Raises:
        UserError: a path is missing, a named file is of a kind that can't be read, a folder has nothing to
            read.
    """
    given = [paths] if isinstance(paths, str | os.PathLike) else list(paths)
    if not given:
        raise UserError("No data was given: name a file or a folder of text.")
    found: list[Path] = []
    for item in given:
        path = Path(item)
        if path.is_dir():
            inside = list(_walk(path))
            if not inside:
                raise UserError(f"The folder {path} has no file to read: looked for {supported()}.")
            found += inside
        elif not path.exists():
            raise UserError(f"There is no data at {path}: no such file or folder.")
        elif suffix_of(path) is None:
            raise UserError(f"{path} is not a kind of file that can be read: use {supported()}.")
        else:
            found.append(path)
    return list(dict.fromkeys(found))


def documents(paths: Paths) -> Iterator[Document]:
    """Read the documents of files and folders, in order. Empty ones are passed over.

    Raises:
        UserError: what `find_files` raises; a file that is not UTF-8 text (with the offset of the byte), a
            line of a jsonl file that is not JSON or has no text (with its number), or no text in any of the
            files.
    """
    files = find_files(paths)
    empty = True
    for path in files:
        for document in _read(path):
            empty = False
            yield document
    if empty:
        where = str(files[0]) if len(files) == 1 else f"all {len(files)} files, {files[0]} the first,"
        raise UserError(f"There is no text to read: {where} {'is' if len(files) == 1 else 'are'} empty.")


def standard_library() -> list[Path]:
    """Return the Python source files of the running Python's standard library, without its tests, sorted.

    It is the corpus that every installation has: about 10 MB of well-kept text. Files that are not UTF-8 are
        left out.
    """
    root = Path(sysconfig.get_path("stdlib"))
    found = [path for path in _walk(root, _NOT_LIBRARY) if path.suffix == ".py" and _is_text(path)]
    if not found:
        raise UserError(f"This Python has no source of its standard library in {root}: give a file with --data.")
    return found


def _walk(root: Path, leave_out: frozenset[str] = frozenset()) -> Iterator[Path]:
    """All supported files under a folder in an order that depends on nothing but their names."""

    def refuse(error: OSError) -> None:
        raise UserError(f"The folder {error.filename} can't be read: {error.strerror}.") from error

    for folder, folders, files in os.walk(root, onerror=refuse):
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name not in leave_out)
        for name in sorted(files):
            path = Path(folder, name)
            if not name.startswith(".") and suffix_of(path) is not None and path.is_file():
                yield path


def _is_text(path: Path) -> bool:
    try:
        path.read_bytes().decode("utf-8")
    except (OSError, UnicodeDecodeError):
        return False
    return True


def _read(path: Path) -> Iterator[Document]:
    try:
        with gzip.open(path) if path.name.lower().endswith(".gz") else path.open("rb") as file:
            reader = cast("io.BufferedIOBase", file)
            yield from _lines(reader, path) if suffix_of(path) == ".jsonl" else _pieces(reader, path)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UserError(f"{path} is not a whole gzip file: {error}.") from error
    except OSError as error:
        raise UserError(f"{path} can't be read: {error.strerror or error}.") from error


def _pieces(file: io.BufferedIOBase, path: Path) -> Iterator[Document]:
    held = ""
    for text in _decoded(file, path):
        held += text
        while len(held) > PIECE:
            cut = _cut(held)
            yield Document(held[:cut], path, last=False)
            held = held[cut:]
    if held:
        yield Document(held, path)


def _cut(text: str) -> int:
    """Where to end a piece: after the last line end within PIECE whose next line starts with text."""
    end = text.rfind("\n", 0, PIECE) + 1
    while end > 0 and text[end].isspace():
        end = text.rfind("\n", 0, end - 1) + 1
    return end or PIECE


def _decoded(file: io.BufferedIOBase, path: Path) -> Iterator[str]:
    """Decode a file block by block, dropping a byte-order mark and refusing what is not text."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    offset = 0
    while True:
        block = file.read(_BLOCK)
        pending = len(decoder.getstate()[0])
        try:
            text = decoder.decode(block, final=not block)
        except UnicodeDecodeError as error:
            raise _binary(path, offset - pending + error.start) from error
        if "\0" in text:
            before = text[: text.index("\0")].encode("utf-8")
            raise _binary(path, offset - pending + len(before))
        if offset == 0:
            text = text.removeprefix("\ufeff")
        if text:
            yield text
        if not block:
            return
        offset += len(block)


def _binary(path: Path, offset: int) -> UserError:
    return UserError(f"{path} is not UTF-8 text: byte {offset} can't be part of a text.")


def _lines(file: io.BufferedIOBase, path: Path) -> Iterator[Document]:
    offset = 0
    for number, line in enumerate(file, start=1):
        content = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
        try:
            record: object = json.loads(content.decode("utf-8")) if content.strip() else None
        except UnicodeDecodeError as error:
            raise _binary(path, offset + len(line) - len(content) + error.start) from error
        except (json.JSONDecodeError, RecursionError) as error:
            raise UserError(f"{path}, line {number}, is not JSON: {error}.") from error
        offset += len(line)
        if not content.strip():
            continue
        fields = cast("dict[str, object]", record) if isinstance(record, dict) else {}
        text = fields.get("text")
        if not isinstance(text, str):
            raise UserError(f'{path}, line {number}, has no text: each line must be like {{"text": "..."}}.')
        if _has_half_characters(text):
            raise UserError(f"{path}, line {number}, holds half a character: a \\ud800 without its other half.")
        if text:
            yield Document(text, path, number)


def _has_half_characters(text: str) -> bool:
    """Whether a text has lone surrogates, which JSON can spell and UTF-8 cannot."""
    return not text.isascii() and any("\ud800" <= character <= "\udfff" for character in set(text))
