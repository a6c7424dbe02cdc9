"""The one exception that is meant for people, and the parts of its sentence that quote what somebody wrote."""

import difflib
import reprlib
from collections.abc import Iterable
from itertools import islice

from anyformer.usual_names import usual_name


class UserError(Exception):
    """A mistake the user can mend: one clear sentence on what is wrong, where, and what to do.

    The command line prints it without a traceback and exits with status 2.
    """


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


def check_keywords(function: str, given: Iterable[str], known: Iterable[str]) -> None:
    """Raise TypeError, as Python does, for the first keyword argument that a function does not have."""
    names = set(known)
    for name in given:
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
    close = difflib.get_close_matches(name.lower(), [n.lower() for n in names], n=1, cutoff=0.6)
    for candidate in names:
        if close and candidate.lower() == close[0]:
            return f"did you mean {candidate!r}?"
    if len(names) > _LISTED:
        nearby = difflib.get_close_matches(name, names, n=3, cutoff=0)
        return f"the nearest of {len(names)} are " + ", ".join(map(repr, nearby))
    return "choose from " + ", ".join(map(repr, names)) if names else "there are none to choose from"


_MOST = 1000
"""Names that are looked at; a file may have millions."""
_LISTED = 20
"""Names that a sentence has room for."""
_LONGEST = 100
"""Characters of a name that are looked at."""
