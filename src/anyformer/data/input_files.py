"""Files of data: finding them by name, folder or glob, and opening them whatever they are compressed with."""

from __future__ import annotations

import codecs
import gzip
import io
import os
import re
import zlib
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import chain
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple, TypeVar, cast

from typing_extensions import override

from anyformer import limits
from anyformer.errors import UserError, cut, library, quote

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer


TEXT_SUFFIXES = (".txt", ".md", ".py")
RECORD_SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet")
SUFFIXES = (*TEXT_SUFFIXES, *RECORD_SUFFIXES)
TAGGED_SUFFIXES = (".conll", ".iob", ".bio")
"""Suffixes of files of words with tags, which only fine-tuning reads."""
COMPRESSED = (".gz", ".zst")

T = TypeVar("T")
Paths = str | os.PathLike[str] | Iterable[str | os.PathLike[str]]

_BUFFER = 1 << 18
_EXPANSION = 200
_EXPANDED_BYTES = 100 * limits.MEGABYTE
"""Bytes that a file may become when it is decompressed, however small it is."""
ROW_BYTES, VALUE_BYTES = 256, 64
"""Memory that a row takes beside its content, and each value in it: a few bytes can stand for thousands of rows."""


class Stretch(NamedTuple):
    """A part of a file: bytes of lines, or row groups of parquet.

    Attributes:
        start, stop: where it begins, and where the next one does; None: it goes on to the end.
        first: the number of its first line or row, from 1.
    """

    start: int = 0
    stop: int | None = None
    first: int = 1


WHOLE = Stretch()


def supported(suffixes: Sequence[str] = SUFFIXES) -> str:
    """The file kinds that can be read, as people write them."""
    return f"{', '.join(suffixes)} (each also as {' or '.join(COMPRESSED)})"


def suffix_of(path: Path, suffixes: Sequence[str] = SUFFIXES) -> str | None:
    """Return the supported suffix of a file, looking through a final .gz or .zst; None where it has none."""
    name = path.name.lower()
    for compressed in COMPRESSED:
        name = name.removesuffix(compressed)
    return next((suffix for suffix in suffixes if name.endswith(suffix)), None)


def find_files(paths: Paths, suffixes: Sequence[str] = SUFFIXES) -> list[Path]:
    """Return the files that `paths` name, each once: files as given, folders with everything readable in them, sorted,
    and globs such as `data/*.txt` or `data/**/*.md` with all that they match, sorted.

    Hidden files and folders are passed over, and so are files of other kinds inside a folder or under a glob. A .json
    file inside a folder is passed over, too, since most are settings and not data: name it, or use a glob.

    Raises:
        UserError: a path is missing, a named file is of a kind that can't be read, a folder or glob has nothing to
            read.
    """
    paths = [paths] if isinstance(paths, str | os.PathLike) else list(paths)
    if not paths:
        raise UserError("No data was given: name a file or a folder of text.")
    files = dict[Path, Path]()
    for path in map(Path, paths):
        if not limits.can_be_path(path):
            raise UserError(f"There is no data at {quote(str(path))}, and no file can be called so: name a file.")
        is_glob = any(character in "*?[" for character in str(path)) and not path.exists()
        for file in (_matching if is_glob else _named)(path, suffixes):
            files.setdefault(file.absolute(), file)
    return list(files.values())


def _named(path: Path, suffixes: Sequence[str]) -> list[Path]:
    if path.is_dir():
        inside = list(walk(path, suffixes=suffixes))
        if not inside:
            raise UserError(f"The folder {path} has no file to read: looked for {supported(suffixes)}.")
        return inside
    if not path.exists():
        raise UserError(f"There is no data at {path}: no such file or folder.")
    if suffix_of(path, suffixes) is None:
        raise UserError(f"{path} is not a kind of file that can be read: use {supported(suffixes)}.")
    return [path]


def _matching(pattern: Path, suffixes: Sequence[str]) -> list[Path]:
    files: list[Path] = []
    hidden = [part for part in pattern.parts if part.startswith(".")]
    for path in sorted(Path(pattern.anchor).glob(str(pattern.relative_to(pattern.anchor)))):
        if any(part.startswith(".") and not any(PurePath(part).match(each) for each in hidden) for part in path.parts):
            continue
        if path.is_dir():
            files += walk(path, suffixes=suffixes)
        elif suffix_of(path, suffixes) is not None:
            files.append(path)
    if not files:
        raise UserError(f"Nothing that can be read matches {pattern}: looked for {supported(suffixes)}.")
    return files


def walk(root: Path, leave_out: frozenset[str] = frozenset(), suffixes: Sequence[str] = SUFFIXES) -> Iterator[Path]:
    """Yield all supported files under a folder in an order that depends on nothing but their names."""

    def refuse(error: OSError) -> None:
        raise UserError(f"The folder {error.filename} can't be read: {error.strerror}.") from error

    for folder, folders, files in os.walk(root, onerror=refuse):
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name not in leave_out)
        for name in sorted(files):
            path = Path(folder, name)
            if not name.startswith(".") and suffix_of(path, suffixes) not in (None, ".json") and path.is_file():
                yield path


@contextmanager
def opened(path: Path, shown: Path | None = None) -> Generator[BinaryIO, None, None]:
    """Open a file for reading, decompressed; messages on text that is not UTF-8 call it `shown`, or by its path.

    Raises:
        UserError: it can't be read, now or later inside the `with`, is not whole, or grows out of all proportion.
        NotUTF8Error: it is read as text and is none (with its first line that isn't, and what to do).
    """
    try:
        with _decompressed(path) as file:
            yield file
    except UnicodeDecodeError as error:
        with _decompressed(path) as file:
            fault = find_fault(file)
        if fault is None:
            raise UserError(f"{path} changed while it was being read.") from error
        shown = shown or path
        byte = "is a NUL byte, which no text has" if fault.is_null else "can't be part of a text"
        reason = f"{shown}, line {fault.line}, is not UTF-8 text: byte {fault.offset} {byte}."
        if fault.is_null:
            raise NotUTF8Error(reason) from error
        likely = f"It may be {fault.encoding}" if fault.encoding else "It may have another encoding, or be no text"
        raise NotUTF8Error(f"{reason} {likely}: {_advice(fault.encoding)}") from error


@contextmanager
def _decompressed(path: Path) -> Generator[BinaryIO, None, None]:
    kind = path.suffix.lower()
    try:
        with limits.open_file(path, buffering=_BUFFER) as file:
            if kind not in COMPRESSED:
                yield file
                return
            with gzip.open(file) if kind == ".gz" else _zstandard(file, path) as unpacked:
                yield _buffered(Expansion(path).reader(unpacked))
    except (OSError, EOFError, zlib.error) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise UserError(f"{path} can't be read: {error.strerror}.") from error
        name = {".gz": "gzip", ".zst": "zstandard"}.get(kind, "complete")
        raise UserError(f"{path} is not a whole {name} file: {cut(str(error).splitlines()[0])}.") from error


def stretch_of(file: BinaryIO, stretch: Stretch) -> BinaryIO:
    """The bytes of a stretch of an open file that is not compressed."""
    if stretch == WHOLE:
        return file
    file.seek(stretch.start)
    if stretch.stop is None:
        return file
    left = stretch.stop - stretch.start

    def read(count: int) -> bytes:
        nonlocal left
        block = file.read(min(count, left))
        left -= len(block)
        return block

    return _buffered(read)


class Expansion:
    """Counts what becomes of a compressed file, which may be gigabytes of a few bytes."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._room = max(_EXPANDED_BYTES, _EXPANSION * path.stat().st_size)

    def add(self, count: int) -> None:
        """Take in a number of bytes. Raises UserError where all of them are too many for the size of the file."""
        self._room -= count
        if self._room < 0:
            raise UserError(
                f"{self._path} becomes more than {_EXPANSION:,} times as large when it is decompressed, which no text "
                "does: if it is meant to, write it without compression."
            )

    def reader(self, file: Any) -> Callable[[int], bytes]:
        """The `read` of a decompressed file, whose bytes are counted."""

        def read(count: int) -> bytes:
            block: bytes = file.read(count)
            self.add(len(block))
            return block

        return read


def counted(rows: Iterable[T], path: Path, size: Callable[[T], int] = lambda row: ROW_BYTES) -> Iterator[T]:
    """The rows of a file. Raises UserError where those of a compressed one are too many for its size, see `Expansion`.

    `size` is about how much memory a row takes.
    """
    expansion = Expansion(path) if path.suffix.lower() in COMPRESSED else None
    for row in rows:
        if expansion is not None:
            expansion.add(size(row))
        yield row


class _Stream(io.RawIOBase):
    """The bytes that a function reads, given how many there may be at most."""

    def __init__(self, read: Callable[[int], bytes]) -> None:
        self._read = read

    @override
    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        room = memoryview(buffer).cast("B")
        block = self._read(len(room))
        room[: len(block)] = block
        return len(block)


def _buffered(read: Callable[[int], bytes]) -> BinaryIO:
    return cast("BinaryIO", io.BufferedReader(_Stream(read), _BUFFER))


def _zstandard(file: BinaryIO, path: Path) -> Any:
    """The stream of one or more frames; reading raises OSError for one that is damaged or cut off."""
    pa = library("pyarrow", f"Reading {path}", "data")
    # The library `zstandard` either takes a frame that is cut off for a whole one, or makes all of a block at once.
    return pa.CompressedInputStream(file, "zstd")


_PART = 1 << 20
"""Bytes of a line that are looked at together."""
_UTF16 = {
    "utf-16-le": re.compile(rb"([^\0][\0-\x05])*[^\0]?"),
    "utf-16-be": re.compile(rb"([\0-\x05][^\0])*\0?"),
}
"""Western text in UTF-16: every other byte is small."""
_TELLING_BYTES = 64
_NOT_WESTERN = re.compile(rb"[\0-\x08\x0e-\x1f\x7f\x81\x8d\x8f\x90\x9d]|[\x80-\xff]{3}")
"""Bytes of binary files; those without a character in Windows' code page 1252; letters that western text hardly has
side by side, as others, of two bytes each, do."""
_OUTSIDE_LATIN_1 = re.compile(rb"[\x80-\x9f]")
"""Controls in Latin-1, quotes and dashes in Windows' code page 1252, which is the same otherwise."""


class NotUTF8Error(UserError):
    """A file is not UTF-8 text."""


_SKIP = "skip"
_MARKS = {
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
"""Encodings by the byte-order mark that a file begins with; that of UTF-16 is the beginning of one of UTF-32."""
_NAMED_FILES = 10
"""Files that a message names."""


def _advice(encoding: str | None) -> str:
    own = (encoding or "NAME").partition(" ")[0]
    return f"train and finetune read it with --encoding {own}, or go on without it with --encoding {_SKIP}."


def check_encoding(name: str | None) -> None:
    """Raise UserError for an encoding that Python doesn't know."""
    try:
        "".encode("utf-8" if name is None or name == _SKIP else name)
    except (LookupError, ValueError):
        raise UserError(
            f"--encoding {cut(str(name))} is unknown: write a name such as cp1252, latin-1, utf-16-le, shift-jis or "
            f"koi8-r, or {_SKIP}."
        ) from None


@contextmanager
def naming_all(files: Iterable[Path]) -> Generator[None]:
    """Where one of the files is not UTF-8 text, name all of them that are not."""
    try:
        yield
    except NotUTF8Error as error:
        files = list(files)
        faulty = [path for path in files if _has_fault(path)]
        if len(faulty) < 2:
            raise
        more = f", and {len(faulty) - _NAMED_FILES:,} more" if len(faulty) > _NAMED_FILES else ""
        names = ", ".join(map(str, faulty[:_NAMED_FILES]))
        raise NotUTF8Error(
            f"{len(faulty):,} of {len(files):,} files are not UTF-8 text: {names}{more}. {error}"
        ) from error


def _has_fault(path: Path) -> bool:
    if suffix_of(path) == ".parquet":
        return False
    with _decompressed(path) as file:
        return find_fault(file) is not None


def in_utf8(path: Path, encoding: str | None, keep: Callable[[str, Callable[[Path], None]], Path]) -> Path | None:
    """The file, or one in UTF-8 with its text if it has a byte-order mark of UTF-16 or UTF-32, or is not UTF-8.

    Args:
        encoding: Of a file that is not UTF-8; "skip" for none; None: it is returned as it is.
        keep: Returns the path of a file, given how its name ends and a function that writes it to a path.

    Returns:
        None for a file to be left out.

    Raises:
        UserError: It is not text in this encoding either.
    """
    with _decompressed(path) as file:
        start = file.read(4)
    own = next((name for mark, name in _MARKS.items() if start.startswith(mark)), None)
    if own is None and (encoding is None or not _has_fault(path)):
        return path
    if own is None and encoding == _SKIP:
        return None
    known = own or str(encoding)

    def write(target: Path) -> None:
        with _decompressed(path) as file, target.open("wb") as written:
            try:
                for text in codecs.iterdecode(iter(partial(file.read, _BUFFER), b""), known):
                    written.write(text.encode("utf-8", "surrogatepass"))
            except UnicodeError as error:
                raise UserError(
                    f"{path} is not {known} text, either: give another --encoding, or go on without it with --encoding "
                    f"{_SKIP}."
                ) from error

    return keep(f"{known}{suffix_of(path, (*SUFFIXES, *TAGGED_SUFFIXES)) or '.txt'}", write)


class Fault(NamedTuple):
    """The first bytes of a file that are not UTF-8.

    Attributes:
        line: The number of their line, from 1.
        offset: Of the first of them.
        encoding: The encodings that the file may have, as Python calls them; None: any, or it is no text.
        is_null: Whether it is a null character.
    """

    line: int
    offset: int
    encoding: str | None = None
    is_null: bool = False


def find_fault(file: BinaryIO) -> Fault | None:
    """The first fault of a file; None: it has none."""
    decoder, number, offset = codecs.getincrementaldecoder("utf-8")(), 1, 0
    for part in chain(iter(partial(file.readline, _PART), b""), [b""]):
        if offset == 0 and (wide := _utf16(part)):
            return Fault(1, 0, wide)
        held = len(decoder.getstate()[0])
        try:
            decoder.decode(part, final=not part)
        except UnicodeDecodeError as error:
            return Fault(number, offset - held + error.start, _western(part) if part else None)
        if (null := part.find(b"\0")) >= 0:
            return Fault(number, offset + null, is_null=True)
        number += part.endswith(b"\n")
        offset += len(part)
    return None


def _utf16(start: bytes) -> str | None:
    """The kind of UTF-16 that a file begins with: a byte-order mark, or western text."""
    if start[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
        return "utf-16"
    start = start[:_TELLING_BYTES]
    return next((kind for kind, pattern in _UTF16.items() if b"\0" in start and pattern.fullmatch(start)), None)


def _western(line: bytes) -> str | None:
    """The encoding of western text; None where a line is no such text."""
    if _NOT_WESTERN.search(line):
        return None
    return "cp1252" if _OUTSIDE_LATIN_1.search(line) else "cp1252 or latin-1"
