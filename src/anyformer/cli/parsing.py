"""Flags from dataclasses, with tyro, in one manner for all commands."""

from collections.abc import Sequence
from typing import Any, TypeVar

import tyro

T = TypeVar("T")


def parse(kind: type[T], argv: Sequence[str], *, prog: str, default: T | None = None) -> T:
    """The options that the arguments ask for.

    Args:
        kind: A dataclass: a field is a flag, its docstring the help.
        argv: The arguments after the command.
        prog: The command, for messages.
        default: Values of the fields that no argument sets; None: the dataclass's own.

    Raises:
        SystemExit: with status 2 and a message that names the nearest flag, for one that is unknown or misshapen;
            with status 0 after ``--help``.
    """
    # tyro tells a missing default by a marker of its own, so None must not reach it.
    given: dict[str, Any] = {} if default is None else {"default": default}
    return tyro.cli(kind, args=list(argv), prog=prog, config=(tyro.conf.AvoidSubcommands,), **given)
