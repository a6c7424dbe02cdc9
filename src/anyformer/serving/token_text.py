"""The bytes of each token, exactly, and their text."""

import json
import re
from functools import cached_property
from typing import Any

from anyformer.tokenizer import Tokenizer

_BYTE = re.compile(r"<0x([0-9A-F]{2})>")
_METASPACE = "\u2581"
_EXACT = {"ByteLevel", "Metaspace", "ByteFallback", "Replace", "Fuse", "Strip", "Sequence"}


class TokenText:
    """The bytes that tokens stand for. A character may be spread over several of them."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._added = set(tokenizer.backend.get_added_tokens_decoder())
        found: Any = tokenizer.backend.decoder  # by itself, since the whole pipeline has a vocabulary
        decoder = {} if found is None else json.loads(found.__getstate__())
        kinds = {step.get("type") for step in (decoder, *decoder.get("decoders", ()))}
        self._bytes = _byte_of_character() if "ByteLevel" in kinds else None
        self._metaspace = bool(kinds & {"Metaspace", "ByteFallback", "Replace"})
        self._pieces = decoder.get("prefix", "##") if "WordPiece" in kinds else None
        self.is_exact = kinds <= _EXACT
        """Whether the text of several tokens is their bytes one after the other, but for a space before the first."""
        self._special_ids = tokenizer.special_ids
        self._special = {tokenizer.token(token) or "": token for token in self._special_ids}

    @cached_property
    def space(self) -> int | None:
        """A token of sentencepiece that begins with a space, which may be lost at the beginning of a text."""
        if not self._metaspace:
            return None
        return next((token for token in range(self._tokenizer.vocab_size) if self.bytes(token)[:1] == b" "), None)

    def without_special(self, text: str, kept: str) -> str:
        """A text without its special tokens, but those that stand in another."""
        return "".join(piece for piece, token in self.split_special(text) if token is None or piece in kept)

    def split_special(self, text: str) -> list[tuple[str, int | None]]:
        """The special tokens of a text with their ids, and what is between them."""
        found = sorted((spelled for spelled in self._special if spelled and spelled in text), key=len, reverse=True)
        pieces = re.split(f"({'|'.join(map(re.escape, found))})", text) if found else [text]
        return [(piece, self._special.get(piece)) for piece in pieces if piece]

    def bytes(self, token: int) -> bytes:
        """The bytes of a token as they stand within a text."""
        spelled = self._tokenizer.token(token)
        if spelled is None:
            return b""
        if token in self._added:
            return spelled.encode()
        if self._bytes is not None and all(character in self._bytes for character in spelled):
            return bytes(self._bytes[character] for character in spelled)
        if self._metaspace:
            if byte := _BYTE.fullmatch(spelled):
                return bytes([int(byte[1], 16)])
            return spelled.replace(_METASPACE, " ").encode()
        if self._pieces is not None:
            return (spelled.removeprefix(self._pieces) if spelled.startswith(self._pieces) else f" {spelled}").encode()
        return spelled.encode()

    def length(self, token: int) -> int:
        """The number of characters that begin in a token; a special one is no part of a text."""
        if token in self._special_ids:
            return 0
        return sum(byte & 0xC0 != 0x80 for byte in self.bytes(token))  # UTF-8's continuations begin with the bits 10

    def text(self, token: int) -> str:
        """The text of a token; one that is a part of a character is spelled out, as OpenAI does."""
        raw = self.bytes(token)
        try:
            return raw.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)


def _byte_of_character() -> dict[str, int]:
    """The byte that each character of a byte-level vocabulary stands for (Radford et al. 2019, section 2.2)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + index): byte for index, byte in enumerate(others)}
