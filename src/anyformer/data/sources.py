"""Files and folders to documents.

A document is a text file, or a field of one record: a line of jsonl, a row of csv, tsv or parquet. A text of more than
PIECE characters comes in several pieces, so that no file is ever in memory whole; a piece ends at a line end that is
followed by text, where tokenizers that split words never join.
"""

import sysconfig
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from anyformer import limits
from anyformer.data.formats.text import decoded
from anyformer.data.input_files import TEXT_SUFFIXES, Paths, find_files, opened, suffix_of, walk
from anyformer.data.records import records
from anyformer.errors import UserError

PIECE = 1 << 17
"""Characters that a piece has at most; a longer line is cut anyway."""

_NOT_LIBRARY = frozenset({"site-packages", "dist-packages", "test", "tests", "idle_test", "turtledemo", "__pycache__"})


@dataclass(frozen=True, slots=True)
class Document:
    """A text, or a piece of one, and where it came from.

    Attributes:
        text: never empty.
        path: its file.
        line: the line or row of a record, from 1; None for a text file.
        last: False when the next document continues this text.
    """

    text: str
    path: Path
    line: int | None = None
    last: bool = True


def documents(paths: Paths, field: str = "text", *, max_record_bytes: int = limits.RECORD_BYTES) -> Iterator[Document]:
    """Read the documents of files, folders and globs (see `find_files`), in order. Empty ones are passed over.

    Args:
        field: of a record that holds the text; text files have no fields.
        max_record_bytes: the size that a record may have; that of text files is not limited.

    Raises:
        UserError: what `find_files` and `records` raise; a file that is not UTF-8 text (with the offset of the byte),
            or no text in any of the files.
    """
    files = find_files(paths)
    found = chain.from_iterable(_read(path, field, max_record_bytes) for path in files)
    first = next(found, None)
    if first is None:
        which = f"{files[0]} is" if len(files) == 1 else f"all {len(files)} files, {files[0]} the first, are"
        raise UserError(f"There is no text to read: {which} empty.")
    yield first
    yield from found


def standard_library() -> list[Path]:
    """Return the Python source files of the running Python's standard library, without its tests, sorted.

    It is the corpus that every installation has: about 10 MB of well-kept text. Files that are not UTF-8 are left out.
    """
    root = Path(sysconfig.get_path("stdlib"))
    found = [path for path in walk(root, _NOT_LIBRARY) if path.suffix == ".py" and _is_text(path)]
    if not found:
        raise UserError(f"This Python has no source of its standard library in {root}: give a file with --data.")
    return found


def _is_text(path: Path) -> bool:
    try:
        path.read_bytes().decode("utf-8")
    except (OSError, UnicodeDecodeError):
        return False
    return True


def _read(path: Path, field: str, max_record_bytes: int) -> Iterator[Document]:
    if suffix_of(path) in TEXT_SUFFIXES:
        with opened(path) as file:
            for piece, last in _pieces(decoded(file, path)):
                yield Document(piece, path, last=last)
    else:
        for number, (text,) in records(path, (field,), max_record_bytes):
            for piece, last in _pieces((text,)):
                yield Document(piece, path, number, last)


def _pieces(blocks: Iterable[str]) -> Iterator[tuple[str, bool]]:
    """Cut a text, which comes in blocks, into pieces, each with whether it is the last."""
    rest = ""
    for block in blocks:
        rest += block
        start = 0
        while len(rest) - start > PIECE:
            end = _cut(rest, start)
            yield rest[start:end], False
            start = end
        rest = rest[start:]
    if rest:
        yield rest, True


def _cut(text: str, start: int) -> int:
    """Where to end a piece: after the last line end within PIECE whose next line starts with text."""
    limit = start + PIECE
    end = text.rfind("\n", start, limit) + 1
    while end > start and text[end].isspace():
        end = text.rfind("\n", start, end - 1) + 1
    return end if end > start else limit
