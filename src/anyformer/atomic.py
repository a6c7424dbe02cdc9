"""Atomic writes: whoever opens a file or a folder finds the old content or the new, never a part of it.

New content is written to ``.NAME.RANDOM.tmp`` in the same folder and then renamed, which is atomic within a file
system. A program that is killed leaves the old content in place, and the temporary file beside it. Permissions follow
the umask. A symbolic link is replaced itself, and what it leads to stays as it is; a file that is added to instead
(`append`) can't be a link. What is loaded as code, or trusted as the user's own, is nobody else's work (`check_own`).
"""

import os
import secrets
import shutil
import stat
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from platformdirs import user_cache_path

from anyformer.errors import UserError

_ABANDONED = 86400.0
_LOG_OF_WANDB = "wandb/*/logs/debug-core.log"
"""A link to a log in the user's cache, which wandb leaves in each run and nothing opens."""


def write(path: Path, content: str | bytes) -> None:
    """Replace the content of a file in a folder that is there, and wait until it is on the disk; raises as `replacing`.

    Text is encoded in UTF-8, where `?` stands for what can't be encoded.
    """
    with replacing(path) as temporary:
        temporary.write_bytes(content.encode("utf-8", errors="replace") if isinstance(content, str) else content)
        sync(temporary)


@contextmanager
def writing(path: Path, *others: type[Exception], advice: str = "") -> Generator[None]:
    """Raise UserError for an OSError within, or another of these errors: the path can't be written."""
    try:
        yield
    except (OSError, *others) as error:
        raise UserError(f"{path} can't be written: {getattr(error, 'strerror', None) or error}.{advice}") from error


@contextmanager
def replacing(path: Path, *, make_parents: bool = False) -> Generator[Path]:
    """Yield the path of an empty temporary file, which replaces `path` if the block ends without an error.

    Any OSError in the block is raised as UserError; the old content stays.
    """
    temporary = _temporary(path)
    with writing(path):
        if make_parents:
            path.parent.mkdir(parents=True, exist_ok=True)
        temporary.touch(exist_ok=False)
        try:
            yield temporary
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def append(path: Path, content: str) -> None:
    """Add to the end of a file, which is made where there is none. What can't be encoded in UTF-8 becomes `?`.

    Raises UserError for a symbolic link, and OSError where it can't be written, as a named pipe that nobody reads.
    """
    refuse_link(path)
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
    flags |= sum(getattr(os, name, 0) for name in ("O_NOFOLLOW", "O_NONBLOCK", "O_BINARY"))
    with os.fdopen(os.open(path, flags, 0o666), "ab") as file:
        file.write(content.encode("utf-8", errors="replace"))


def refuse_link(path: Path) -> None:
    """Raise UserError where something that is to be written to is a symbolic link."""
    if path.is_symlink():
        reason = "by which something elsewhere would be written to"
        raise UserError(f"{path} is a symbolic link, {reason}: put a copy in its place, or remove it.")


def open_directory(root: Path, *parts: str) -> Path:
    """Check a directory before a command goes on with it: one of a run, a comparison, a checkpoint, a cache.

    It may come from anyone, and what is written to it stays in it. It is looked at once: who may still write to it can
    plant a link later.

    Args:
        root: The directory, or one above it. Its own path may be a link, as whoever gave it chose it.
        parts: Names that lead from there to the directory, or to a file. What is missing is left to the caller.

    Raises:
        UserError: It can't be read; one of the parts, or something in the directory, is a symbolic link; or, deeper in
            it, there is one that leads out of it.
    """
    path = root
    for part in parts:
        path /= part
        refuse_link(path)
    real = os.path.realpath(path)

    def refuse(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError):  # another process has just finished with it
            raise UserError(f"{error.filename} can't be read: {error.strerror}.") from error

    for folder, folders, files in os.walk(path, onerror=refuse) if path.is_dir() else ():
        for each in (Path(folder, name) for name in (*folders, *files)):
            if not each.is_symlink() or each.match(_LOG_OF_WANDB):
                continue
            if each.parent == path or not Path(os.path.realpath(each)).is_relative_to(real):
                refuse_link(each)
    return path


def check_new(path: Path) -> None:
    """Raise UserError for a file that is there already, or has no folder, before anything is computed."""
    with writing(path, ValueError):  # a null character in the name
        if path.is_symlink() or path.exists():
            raise UserError(f"{path} is there already: name another file, or remove it.")
        if not path.parent.is_dir():
            raise UserError(f"{path} can't be written: there is no folder {path.parent}.")


@contextmanager
def temporary_folder(path: Path) -> Generator[Path]:
    """Yield an empty folder beside `path`, which is removed at the end of the block unless it has been renamed."""
    folder = _temporary(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def move(source: Path, target: Path) -> None:
    """Rename a finished file or folder once its content is on the disk, and wait until the new name is as well.

    Raises OSError where the disk refuses, or the target is a folder that isn't empty.
    """
    sync(source)
    source.rename(target)
    _sync(target.parent)


def sync(path: Path) -> None:
    """Wait until a file, or a folder and all that is in it, is on the disk. Raises OSError where it refuses."""
    for each in (path, *path.rglob("*")) if path.is_dir() else (path,):
        _sync(each)


def remove_abandoned(folder: Path, *, age: float = _ABANDONED) -> None:
    """Remove from a folder the temporary files and folders of programs that were killed.

    Args:
        age: Seconds since the last change from which on one counts as abandoned.
    """
    for path in folder.glob(".*.*.tmp"):
        if path.is_symlink():
            continue  # none of ours, and nothing beyond it is looked at
        try:
            latest = max(each.lstat().st_mtime for each in (path, *path.rglob("*")))
        except FileNotFoundError:
            continue  # another program has just finished with it
        if time.time() - latest >= age:
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


def cache_folder() -> Path:
    """The folder of what can be made again: $ANYFORMER_CACHE, or else the platform's own for this user.

    Raises UserError where there is neither: the platform's would then lie in the current folder.
    """
    if chosen := os.environ.get("ANYFORMER_CACHE"):
        return Path(chosen)
    folder = user_cache_path("anyformer", appauthor=False)
    if not folder.is_absolute():
        raise UserError("This user has no home folder for a cache: set ANYFORMER_CACHE to a folder of your own.")
    return folder


def private_folder(path: Path) -> Path:
    """Make a folder that this user alone may enter, where there is none, and those above it; return its real path.

    Raises OSError where it can't be made, and PermissionError as `check_own`.
    """
    for each in (*reversed(path.parents), path):
        if not each.is_dir():
            each.mkdir(mode=0o700, exist_ok=True)
    return check_own(path)


def check_own(path: Path) -> Path:
    """The path, without symbolic links, of a file or folder that nobody but this user and root can have written.

    It and all folders above it belong to one of the two, and no one else may write to them; others may add files of
    their own to a folder above it that has the sticky bit, such as /tmp. Access control lists are not looked at, and on
    Windows nothing is. Raises PermissionError with the reason, and OSError where there is nothing at the path.
    """
    real = path.resolve(strict=True)
    if os.name != "posix":
        return real
    for each in (real, *real.parents):
        status = each.lstat()
        if status.st_uid not in (0, os.geteuid()):
            raise PermissionError(f"{each} belongs to another user")
        shared = stat.S_IMODE(status.st_mode) & (stat.S_IWOTH | (0 if _is_own_group(status.st_gid) else stat.S_IWGRP))
        sticky = each != real and status.st_mode & stat.S_ISVTX
        if shared and not sticky:
            raise PermissionError(f"other users may write to {each}: chmod go-w it")
    return real


def _is_own_group(number: int) -> bool:
    """Whether a group is the one that many systems make for each user, of the user's name and nobody else in it."""
    import grp
    import pwd

    try:
        user, group = pwd.getpwuid(os.geteuid()), grp.getgrgid(number)
    except KeyError:
        return False
    return user.pw_gid == number and group.gr_name == user.pw_name and set(group.gr_mem) <= {user.pw_name}


def _temporary(path: Path) -> Path:
    """An unused name in the same folder: with 64 random bits, nobody else's."""
    return path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")


def _sync(path: Path) -> None:
    if path.is_dir() and os.name != "posix":
        return  # only POSIX can open a folder
    descriptor = os.open(path, os.O_RDONLY if os.name == "posix" else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
