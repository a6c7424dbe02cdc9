"""The one exception that is meant for people, and the hint that goes with a misspelt name."""

import difflib
from collections.abc import Iterable
from itertools import islice


class UserError(Exception):
    """A mistake the user can mend: one clear sentence on what is wrong, where, and what to do.

    The command line prints it without a traceback and exits with status 2.
    """


def nearest(name: str, valid: Iterable[str]) -> str:
    """Return a hint for a `name` that is not in `valid`.

    `did you mean 'gpt2'?` when one of the valid names is close, else `choose from 'a', 'b'`, or where there are many
    `the nearest of 55 are 'a', 'b', 'c'`.
    """
    names = sorted(set(islice(valid, _MOST)))
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
