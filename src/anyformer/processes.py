"""Starting programs: Python's own never import from the current folder, which a stranger may have filled.

``python -m`` puts the current folder first on `sys.path`; ``-P`` and PYTHONSAFEPATH leave it out, here and in what the
program itself starts.
"""

import os
import sys
from collections.abc import Mapping


def python(*arguments: str) -> list[str]:
    """The command that runs this Python with arguments such as ``"-m", "package.module"``."""
    return [sys.executable, "-P", *arguments]


def environment(changes: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment of a program that is started, with changes."""
    return {**os.environ, "PYTHONSAFEPATH": "1", **(changes or {})}
