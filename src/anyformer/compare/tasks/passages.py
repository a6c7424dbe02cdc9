"""Short passages of a text: each begins where a line or a sentence does, and has about the same number of tokens."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

import numpy as np

from anyformer.compare.tasks.words import words
from anyformer.tokenizer import Tokenizer

_BOUNDARY = re.compile(r"\n+|(?<=[.!?])[ \t]+|[。！？]")
_CHUNK = 8
"""Characters that are read on from a random place, for each token of a passage: about two passages."""
_FEWEST_WORDS = 4
_LONGEST_TOKEN = 12
"""Characters of a token, more than nearly all have: what is encoded to find so many tokens."""


def passages(
    texts: Sequence[str],
    tokenizer: Tokenizer,
    *,
    count: int,
    max_tokens: int,
    seed: int,
    unlike: Sequence[str] = (),
) -> list[str]:
    """Passages from random places.

    Args:
        texts: What they are from. No two of them overlap, or are equal.
        tokenizer: Whose tokens are counted.
        count: As many passages, or fewer if there are fewer.
        max_tokens: Tokens of a passage; it has at least half as many, and four words.
        seed: Of the places.
        unlike: Texts in which none of them occurs.
    """
    chunks = [chunk for text in texts for chunk in _chunks(text, _CHUNK * max_tokens)]
    np.random.default_rng(seed).shuffle(chunks)
    found = dict[str, None]()
    for passage in (passage for chunk in chunks for passage in _walk(chunk, tokenizer, max_tokens)):
        if len(found) == count:
            break
        if passage not in found and not any(passage in text for text in unlike):
            found[passage] = None
    return list(found)


def _chunks(text: str, size: int) -> Iterator[str]:
    begin = 0
    while begin < len(text):
        cut = _BOUNDARY.search(text, min(begin + size, len(text)))
        end = cut.end() if cut else len(text)
        yield text[begin:end]
        begin = end


def _walk(text: str, tokenizer: Tokenizer, max_tokens: int) -> Iterator[str]:
    begin = 0
    while begin < len(text):
        window = text[begin : begin + _LONGEST_TOKEN * max_tokens]
        ids, offsets = tokenizer.encode_offsets(window)
        room = len(window) if len(ids) <= max_tokens else offsets[max_tokens - 1][1]
        half = offsets[min(len(ids), max_tokens // 2) - 1][1] if ids else room
        ends = [match.end() for match in _BOUNDARY.finditer(window) if half <= match.end() <= room]
        inside = words(window[:room])
        cut = ends[-1] if ends else inside[-1].end if inside else 0
        passage = window[:cut].rstrip()
        size = len(tokenizer.encode(passage, special=False))
        if max_tokens // 2 <= size <= max_tokens and len(words(passage)) >= _FEWEST_WORDS:
            yield passage
        after = _BOUNDARY.search(text, begin + max(1, len(passage)))
        begin = after.end() if after else len(text)
