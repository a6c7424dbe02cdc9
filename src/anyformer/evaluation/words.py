"""A text as words, which is how examples of tagging come."""

import re
import unicodedata
from collections.abc import Iterator

Span = tuple[int, int]
"""The characters of a word: the first one, and the one behind the last."""

_PIECE = re.compile(r"\S+")
_INITIALS = re.compile(r"\W*(?:[^\W\d_]\.)+")
_POSSESSIVE = ("'s", "\u2019s", "'S", "\u2019S")


def word_spans(text: str) -> list[Span]:
    """Where the words of a text are.

    Words are separated by space. Punctuation before and behind a word is a word of its own, the same mark several times
    is one (`...`), and so is `'s`, as in the data sets of CoNLL 2003 and WNUT 2017. What is left whole: punctuation
    within a word (`co-op`, `3.5`, `don't`), initials (`U.S.`), and `@` and `#` before a name.
    """
    return [span for piece in _PIECE.finditer(text) for span in _split(text, *piece.span())]


def _split(text: str, start: int, end: int) -> Iterator[Span]:
    """The words of a piece without space."""
    after = list[Span]()
    while start < end and _is_mark(text[end - 1]):
        first = end - 1
        while first > start and text[first - 1] == text[end - 1]:
            first -= 1
        after.append((first, end))
        end = first
    if after and _INITIALS.fullmatch(text, start, after[-1][1]):
        end = after.pop()[1]
    if text.endswith(_POSSESSIVE, start, end):
        after.append((end - 2, end))
        end -= 2
    while start < end and _is_mark(text[start]) and not (text[start] in "@#" and not _is_mark(text[start + 1])):
        first = start
        while start < end and text[start] == text[first]:
            start += 1
        yield first, start
    if start < end:
        yield start, end
    yield from reversed(after)


def _is_mark(character: str) -> bool:
    return unicodedata.category(character).startswith("P")
