"""Starting programs: no other module does, and what is started never imports from the current folder.

A stranger may have filled that folder. ``python -m`` and ``python -c`` put it first on `sys.path`; ``-P`` and
PYTHONSAFEPATH leave it out, here and in what the program itself starts. Nor is a program found there.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Process = subprocess.Popen[bytes]


def python(*arguments: str) -> list[str]:
    """The command that runs this Python with arguments such as ``"-m", "package.module"``."""
    return [sys.executable, "-P", *arguments]


def environment(changes: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment of a program that is started, with changes."""
    return {**os.environ, "PYTHONSAFEPATH": "1", **(changes or {})}


def find(name: str) -> str | None:
    """The absolute path of a program on the PATH; None where there is none, or one in the current folder alone.

    That is where Windows looks first, and what an empty entry of the PATH means.
    """
    found = shutil.which(name)
    if found is not None and Path(name).name != name:
        return str(Path(found).absolute())  # it was given with its folder
    return found if found is not None and Path(found).is_absolute() else None


def start(command: Sequence[str], *, changes: Mapping[str, str] | None = None, **options: Any) -> Process:
    """Start a program in `environment(changes)`, with other options of `subprocess.Popen`.

    Raises:
        OSError: it can't be started.
    """
    return Process(command, env=environment(changes), text=False, **options)


def run(
    command: Sequence[str],
    *,
    folder: Path | None = None,
    changes: Mapping[str, str] | None = None,
    timeout: float | None = None,
) -> str:
    """Run a program to its end in `environment(changes)`, and return what it prints, errors among it.

    Raises:
        OSError: it can't be started.
        subprocess.CalledProcessError: it fails; `stdout` has what it printed.
        subprocess.TimeoutExpired: it takes longer than that many seconds.
    """
    done = subprocess.run(
        command,
        cwd=folder,
        env=environment(changes),
        check=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        timeout=timeout,
    )
    return done.stdout
