"""Labels that are another label, misspelt."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping

_PREFIX = re.compile(r"([BIESUL]-)?(.*)", re.DOTALL)
"""Beginning and inside of an entity are two labels of one name."""
_SEPARATORS = re.compile(r"[\s_-]+")
_DIGITS = re.compile(r"\d")
_LETTERS = 4, 24
"""Letters of a name that is likely to be misspelt by one: shorter ones differ by that, longer ones are sentences."""
_RARE = 50
"""How many times as often as a misspelling its label occurs, at least, unless it occurs once."""


def look_alikes(counts: Mapping[str, int]) -> list[tuple[str, str]]:
    """Pairs of a label and a more frequent one that differ in case, in spaces, or in about a letter.

    Those that differ in a letter are pairs if the first one is rare. It takes time in proportion to the labels.

    Args:
        counts: How often each label occurs.
    """
    groups = defaultdict[str, list[str]](list)
    ranked = sorted(counts, key=lambda label: -counts[label])
    for label in ranked:
        for key in _keys(label):
            groups[key].append(label)
    found = dict[str, str]()
    for label in ranked:
        same, *near = _keys(label)
        candidates = [groups[same][0], *(other for key in (same, *near) for other in groups[key][:1])]
        for other in candidates:
            if label != other and label not in found and _is_misspelt(label, other, counts):
                found[label] = other
    return list(found.items())


def _is_misspelt(label: str, other: str, counts: Mapping[str, int]) -> bool:
    if _plain(label) == _plain(other):
        return True
    if _DIGITS.sub("", label) == _DIGITS.sub("", other):  # numbers of something
        return False
    return counts[label] < counts[other] and counts[label] <= max(1, counts[other] // _RARE)


def _plain(label: str) -> str:
    """A label without what is easily written otherwise."""
    found = _PREFIX.fullmatch(label.strip())
    assert found is not None
    return f"{found[1] or ''}{_SEPARATORS.sub('', found[2]).casefold()}"


def _keys(label: str) -> Iterator[str]:
    """The plain label, and what is left of it without each of its letters: labels that differ by one share a key."""
    plain = _plain(label)
    yield plain
    found = _PREFIX.fullmatch(plain)
    assert found is not None
    prefix, name = found[1] or "", found[2]
    fewest, most = _LETTERS
    if fewest <= len(name) <= most:
        yield from (f"{prefix}{name[:place]}{name[place + 1 :]}" for place in range(len(name)))
