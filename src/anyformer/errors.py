"""The one exception that is meant for people, and the parts of its sentence: locations, names, what somebody wrote."""

import difflib
import reprlib
from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from itertools import islice
from pathlib import Path
from typing import Any


class UserError(Exception):
    """A mistake the user can mend: one clear sentence on what is wrong, where, and what to do.

    The command line prints it without a traceback and exits with status 2.
    """


@contextmanager
def located(location: object) -> Generator[None]:
    """Begin the sentence of a UserError that is raised within by its location, such as a path."""
    try:
        yield
    except UserError as error:
        raise type(error)(f"{location}: {error}") from error


def library(name: str, purpose: str, extra: str, package: str | None = None) -> Any:
    """A library that is installed by ``pip install 'anyformer[EXTRA]'`` alone.

    Raises UserError where it is not there, saying what needs it: "PURPOSE needs PACKAGE" (its own name by default).
    """
    try:
        return import_module(name)
    except ImportError as error:
        raise UserError(f"{purpose} needs {package or name}: pip install 'anyformer[{extra}]'.") from error


def quote(value: object) -> str:
    """The value as Python writes it, in 200 characters at most, for a message about what a stranger wrote."""
    if isinstance(value, str):
        return cut(repr(value[:_QUOTED]))
    try:
        return cut(_SHORT.repr(value))
    except ValueError:  # a number of thousands of digits
        return "a number too long to write"


def cut(text: str) -> str:
    """The text without quotation marks, in 200 characters at most."""
    return text if len(text) <= _QUOTED else f"{text[: _QUOTED - 3]}..."


_QUOTED = 200
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxlong = _SHORT.maxother = _QUOTED
_SHORT.maxlist = _SHORT.maxtuple = _SHORT.maxdict = 20


def check_keywords(function: str, keywords: Iterable[str], parameters: Iterable[str]) -> None:
    """Raise TypeError, as Python does, for the first keyword argument that a function does not have."""
    names = set(parameters)
    for name in keywords:
        if name not in names:
            raise TypeError(f"{function}() got an unexpected keyword argument {quote(name)} ({nearest(name, names)})")


def nearest(name: str, valid: Iterable[str]) -> str:
    """Return a hint for a `name` that is not in `valid`.

    `that is 'learning_rate' here` for a setting that other libraries call so, `did you mean 'gpt2'?` when one of the
    valid names is close, else `choose from 'a', 'b'`, or where there are many `the nearest of 55 are 'a', 'b', 'c'`.
    """
    name, names = name[:_LONGEST], sorted({each[:_LONGEST] for each in islice(valid, _MOST)})
    if ours := usual_name(name, names):
        return f"that is {' or '.join(map(repr, ours))} here"
    # The dashes of flags are nothing in which they are alike.
    lower = {each.lower().lstrip("-"): each for each in reversed(names)}
    given = name.lower().lstrip("-")
    if close := difflib.get_close_matches(given, lower, n=1, cutoff=_CLOSE if len(given) > 3 else _CLOSE_AND_SHORT):
        return f"did you mean {lower[close[0]]!r}?"
    if len(names) > _LISTED:
        nearby = difflib.get_close_matches(name, names, n=3, cutoff=0)
        return f"the nearest of {len(names)} are " + ", ".join(map(repr, nearby))
    return "choose from " + ", ".join(map(repr, names)) if names else "there are none to choose from"


_CLOSE, _CLOSE_AND_SHORT = 0.75, 0.66
"""Ratio of `difflib` from which two spellings are close: one wrong letter of four, or of three in short ones."""
_MOST = 1000
"""Names that are looked at; a file may have millions."""
_LISTED = 20
"""Names that a sentence has room for."""
_LONGEST = 100
"""Characters of a name that are looked at."""


@cache
def names_elsewhere() -> dict[str, str]:
    """Names that settings have here, each with those of other libraries, separated by spaces."""
    import tomllib  # for a message alone

    return tomllib.loads(Path(__file__).with_name("usual_names.toml").read_text(encoding="utf-8"))


def usual_name(name: str, valid: Sequence[str]) -> list[str]:
    """Valid names with the meaning that `name` has in other libraries; all may be flags, or dotted."""
    spelling = {_plain(each): each for each in reversed(valid)}

    def spelled(ours: str) -> str | None:
        """The valid name: whole, behind "model.", or as a part of a field or in one."""
        part, dot, field = ours.partition(".")
        candidates = (ours, f"model.{ours}", *([field] if dot else []))
        usual = next((spelling[each] for each in candidates if each in spelling), None)
        return usual or (ours if dot and part in spelling else None)

    plain = _plain(name).rpartition(".")[2]
    if plain in spelling:  # it differs by its capitals alone
        return []
    listed = next((ours for ours, theirs in names_elsewhere().items() if plain in theirs.split()), "")
    for choice in listed.split(" / "):
        if ours := [each for each in map(spelled, choice.split()) if each is not None]:
            return ours
    return []


def _plain(name: str) -> str:
    """A flag as the field that it sets."""
    return name.lstrip("-").replace("-", "_").lower()
