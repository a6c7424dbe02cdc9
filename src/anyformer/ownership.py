"""Who may have written a file: what is loaded as code, or trusted as the user's own, may be nobody else's work."""

import os
import stat
from pathlib import Path


def private_folder(path: Path) -> Path:
    """Make a folder that this user alone may enter, where there is none, and those above it; return its real path.

    Raises:
        PermissionError: somebody else may write there, see `check_own`.
        OSError: it can't be made.
    """
    for each in (*reversed(path.parents), path):
        if not each.is_dir():
            each.mkdir(mode=0o700, exist_ok=True)
    return check_own(path)


def check_own(path: Path) -> Path:
    """The path, without symbolic links, of a file or folder that nobody but this user and root can have written.

    It and all folders above it belong to one of the two, and no one else may write to them; others may add files of
    their own to a folder above it that has the sticky bit, such as /tmp. Access control lists are not looked at, and on
    Windows nothing is.

    Raises:
        PermissionError: it is not so; says why.
        OSError: there is nothing at the path.
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
    """Whether it is the group that many systems make for each user, with nobody else in it: it has the user's name."""
    import grp
    import pwd

    try:
        user, group = pwd.getpwuid(os.geteuid()), grp.getgrgid(number)
    except KeyError:
        return False
    return user.pw_gid == number and group.gr_name == user.pw_name and set(group.gr_mem) <= {user.pw_name}
