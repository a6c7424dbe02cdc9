"""The cache: what was made from the data once and can be used again, such as token files.

::

    FOLDER/KIND/KEY/    an entry: files that were made together

An entry is made beside its place, written through to the disk and renamed into it, so it is whole or absent, whatever
ends the program; of two programs that make the same one, the first to finish wins and the other takes that. Every key
is a hash of all that decides the content, so nothing in the cache is ever out of date, and all of it can be deleted.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from anyformer.errors import UserError

VARIABLE = "ANYFORMER_CACHE"
_VERSION = "1"
_ABANDONED = 86400.0
"""Seconds after which what a killed program was making is removed."""

_T = TypeVar("_T")


def cache_folder(given: str | os.PathLike[str] | None = None) -> Path:
    """Return the cache folder: the given one, else that of $ANYFORMER_CACHE, else the platform's for the user."""
    if given is not None:
        return Path(given)
    if os.environ.get(VARIABLE):
        return Path(os.environ[VARIABLE])
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local"
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "anyformer"


def key(*facts: object) -> str:
    """Return a hash of some facts, and of the version of what the cache holds."""
    told = "\0".join(map(repr, (_VERSION, *facts)))
    return hashlib.sha256(told.encode("utf-8", "surrogateescape")).hexdigest()[:32]


def identity(files: Iterable[Path]) -> str:
    """Return a hash of the names, sizes and times of change of files, which stands for their content.

    Raises:
        UserError: one of them is gone.
    """
    facts: list[object] = []
    for path in files:
        try:
            status = path.stat()
        except OSError as error:
            raise UserError(f"{path} can't be read: {error.strerror or error}.") from error
        # A file of other content may have been given the old one's size and time, but not its time of change.
        facts.append((str(path.absolute()), status.st_size, status.st_mtime_ns, status.st_ctime_ns))
    return key(*facts)


class Cache:
    """A folder of entries.

    Attributes:
        folder: where it is; made when the first entry is.
    """

    def __init__(self, folder: str | os.PathLike[str] | None = None) -> None:
        """Use the cache in a folder; None: see `cache_folder`."""
        self.folder = cache_folder(folder)

    def entry(self, kind: str, name: str, make: Callable[[Path], None], read: Callable[[Path], _T]) -> _T:
        """Read an entry, which is made before where it is absent or damaged.

        Args:
            kind: the folder it belongs to.
            name: its own, a `key` of all that decides its content.
            make: writes its files into the folder it is given.
            read: reads it; raises UserError when it is damaged.

        Raises:
            UserError: what `make` raises; the folder can't be written, or the disk is full.
        """
        place = self.folder / kind / name
        if place.is_dir():
            try:
                return read(place)
            except UserError:
                # Somebody deleted a part of it, and what it was made from is still there.
                with self._beside(kind) as beside:
                    place.rename(beside / name)
        with self._beside(kind) as beside:
            (beside / name).mkdir()
            make(beside / name)
            _settle(beside / name, place)
        return read(place)

    def file(self, kind: str, name: str, make: Callable[[Path], None]) -> Path:
        """Return the path of a file called `name`, which `make` writes where there is none. Raises as `entry` does."""
        place = self.folder / kind / name
        if not place.is_file():
            with self._beside(kind) as beside:
                make(beside / name)
                _settle(beside / name, place)
        return place

    def keep(self, kind: str, write: Callable[[Path], str]) -> Path:
        """Write a file that is called after its content: `write` is given a path, and returns the name to keep it by.

        Raises as `entry` does.
        """
        with self._beside(kind) as beside:
            place = self.folder / kind / write(beside / "new")
            _settle(beside / "new", place)
        return place

    @contextmanager
    def _beside(self, kind: str) -> Generator[Path, None, None]:
        """A folder to make something in, beside where it belongs."""
        folder = self.folder / kind
        try:
            folder.mkdir(parents=True, exist_ok=True)
            _sweep(folder)
            beside = Path(tempfile.mkdtemp(prefix=".", suffix=".tmp", dir=folder))
            try:
                yield beside
            finally:
                shutil.rmtree(beside, ignore_errors=True)
        except OSError as error:
            raise UserError(
                f"The cache folder {self.folder} can't be written: {error.strerror or error}. Free some space, or "
                "choose another folder with --cache."
            ) from error


def _settle(made: Path, place: Path) -> None:
    """Write through to the disk, and rename into place; what is there by now is as good."""
    inside = [made, *made.rglob("*")] if made.is_dir() else [made]
    for path in inside:
        _sync(path)
    try:
        made.rename(place)
    except OSError:
        if not place.exists():
            raise
    _sync(place.parent)


def _sync(path: Path) -> None:
    if path.is_dir() and os.name != "posix":
        return  # only POSIX can open a folder
    number = os.open(path, os.O_RDONLY if os.name == "posix" else os.O_RDWR)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def _sweep(folder: Path) -> None:
    """Remove what killed programs have left."""
    for path in folder.glob(".*.tmp"):
        try:
            latest = max(inner.stat().st_mtime for inner in (path, *path.rglob("*")))
        except FileNotFoundError:
            continue  # its program is just done with it
        if time.time() - latest > _ABANDONED:
            shutil.rmtree(path, ignore_errors=True)
