"""The cache: what was made from the data once and can be used again, such as token files.

::

    FOLDER/KIND/KEY/    an entry: files that were made together

An entry is written atomically, so it is whole or absent, whatever ends the program; of two programs that make the same
one, the first to finish wins and the other takes that. Every key is a hash of all that decides the content, so nothing
in the cache is ever out of date, and all of it can be deleted.
"""

import hashlib
import os
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from anyformer import atomic, limits
from anyformer.errors import UserError

_VERSION = "1"

_T = TypeVar("_T")


def key(*facts: object) -> str:
    """Return a hash of some facts, and of the version of what the cache holds."""
    content = "\0".join(map(repr, (_VERSION, *facts)))
    return hashlib.sha256(content.encode("utf-8", "surrogateescape")).hexdigest()[:32]


def identity(files: Iterable[Path]) -> str:
    """Return a hash of the names, sizes and times of change of files. Raises UserError when one of them is gone."""
    facts: list[object] = []
    for path in files:
        with limits.reading(path):
            status = path.stat()
        # A file of other content may have been given the old one's size and time, but not its time of change.
        facts.append((str(path.absolute()), status.st_size, status.st_mtime_ns, status.st_ctime_ns))
    return key(*facts)


class Cache:
    """A folder of entries."""

    def __init__(self, folder: str | os.PathLike[str] | None = None) -> None:
        """Use the cache in a folder; None: the user's own, see `atomic.private_folder`.

        Raises:
            UserError: there is no such folder, or others may write to the user's: what is in it would be trusted.
        """
        if folder is not None:
            self.folder = Path(folder)
            return
        try:
            self.folder = atomic.private_folder(atomic.cache_folder())
        except OSError as error:
            raise UserError(
                f"The cache folder {atomic.cache_folder()} can't be used: {error.strerror or error}. Set "
                "ANYFORMER_CACHE to another one, or name one that you trust with --cache."
            ) from error

    def entry(self, kind: str, name: str, make: Callable[[Path], None], read: Callable[[Path], _T]) -> _T:
        """Read an entry of a kind, which is made before where it is absent or damaged.

        Its name is a `key` of all that decides its content. `make` writes its files into a folder; `read` reads them,
        and raises UserError when they are damaged.

        Raises:
            UserError: what `make` raises; the folder can't be written, or the disk is full; a symbolic link leads out
                of it.
        """
        entry = atomic.open_directory(self.folder, kind, name)
        if entry.is_dir():
            try:
                return read(entry)
            except UserError:
                # Somebody deleted a part of it, and what it was made from is still there.
                with self._temporary(kind) as folder:
                    entry.rename(folder / name)
        with self._temporary(kind) as folder:
            try:
                make(folder)
                _move(folder, entry)
            except UserError:
                if not entry.is_dir():  # of another program, which then has removed what both began with
                    raise
        return read(entry)

    def file(self, kind: str, name: str, make: Callable[[Path], object]) -> Path:
        """Return the path of a file called `name`, which `make` writes where there is none. Raises as `entry` does."""
        file = atomic.open_directory(self.folder, kind, name)
        if not file.is_file():
            with self._temporary(kind) as folder:
                make(folder / name)
                _move(folder / name, file)
        return file

    def keep(self, kind: str, write: Callable[[Path], str]) -> Path:
        """Write a file that is called after its content: `write` returns the name. Raises as `entry` does."""
        with self._temporary(kind) as folder:
            file = self.folder / kind / write(folder / "new")
            _move(folder / "new", file)
        return file

    @contextmanager
    def _temporary(self, kind: str) -> Generator[Path]:
        """A folder to make an entry in, next to where it belongs."""
        atomic.refuse_link(self.folder / kind)
        try:
            atomic.remove_abandoned(self.folder / kind)
            with atomic.temporary_folder(self.folder / kind / "new") as folder:
                yield folder
        except OSError as error:
            raise UserError(
                f"The cache folder {self.folder} can't be written: {error.strerror or error}. Free some space, or "
                "choose another folder with --cache."
            ) from error


def _move(made: Path, entry: Path) -> None:
    """Rename into place; what another program has put there by now is as good."""
    try:
        atomic.move(made, entry)
    except OSError:
        if not entry.exists():
            raise
