"""The bytes of each token, exactly, and their text."""

from __future__ import annotations

import json
import re
from typing import Any

from anyformer.tokenizer import Tokenizer

_BYTE = re.compile(r"<0x([0-9A-F]{2})>")
_METASPACE = "\u2581"


class TokenText:
    """The bytes that tokens stand for. A character may be spread over several of them."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._added = set(tokenizer.backend.get_added_tokens_decoder())
        decoder: Any = json.loads(tokenizer.backend.to_str()).get("decoder") or {}
        kinds = {step.get("type") for step in (decoder, *decoder.get("decoders", ()))}
        self._bytes = _byte_of_character() if "ByteLevel" in kinds else None
        self._metaspace = bool(kinds & {"Metaspace", "ByteFallback", "Replace"})
        self._pieces = decoder.get("prefix", "##") if "WordPiece" in kinds else None

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
