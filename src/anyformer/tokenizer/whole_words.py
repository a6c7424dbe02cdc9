"""Which tokens make up a word, for objectives that hide whole words."""

from __future__ import annotations

import json
import re
import unicodedata
from typing import Any, cast

import tokenizers
from tokenizers import decoders, models

_BYTE = re.compile(r"<0x[0-9A-F]{2}>")


def word_boundaries(backend: tokenizers.Tokenizer) -> tuple[list[bool], list[bool]]:
    """Return where each token joins its neighbors: on the left, and on the right; [largest id + 1] each.

    A token goes on with the word of the one before it where that joins on the right and it joins on the left.
    WordPiece tells by its prefix (##). Elsewhere a token joins with a letter, digit or mark at that end: the space
    that other tokenizers put at the beginning of a word (Ġ, ▁) is none. A token of bytes that are no whole character
    joins on both sides.
    """
    ids = backend.get_vocab(with_added_tokens=True).values()
    tokens = [backend.id_to_token(index) or "" for index in range(max(ids, default=-1) + 1)]
    if isinstance(backend.model, models.WordPiece):
        prefix = str(cast("Any", backend.model).continuing_subword_prefix)
        return [token.startswith(prefix) for token in tokens], [bool(token) for token in tokens]
    if _is_byte_level(backend):
        bytes_ = decoders.ByteLevel()
        tokens = [bytes_.decode([token]) for token in tokens]
    return [_joins(token, 0) for token in tokens], [_joins(token, -1) for token in tokens]


def _joins(token: str, end: int) -> bool:
    if not token:
        return False
    return token[end] == "\N{REPLACEMENT CHARACTER}" or bool(_BYTE.fullmatch(token)) or _is_word(token[end])


def _is_word(character: str) -> bool:
    return unicodedata.category(character)[0] in "LMN"


def _is_byte_level(backend: tokenizers.Tokenizer) -> bool:
    """Whether the tokens are written in the 256 printable characters that stand for bytes."""
    pipeline = json.loads(backend.to_str())
    parts: list[Any] = [pipeline["pre_tokenizer"], pipeline["decoder"]]
    while parts:
        part = parts.pop()
        if part is not None and part["type"] == "ByteLevel":
            return True
        if part is not None:
            parts += part.get("pretokenizers", []) + part.get("decoders", [])
    return False
