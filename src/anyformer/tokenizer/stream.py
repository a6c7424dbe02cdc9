"""Decoding one token at a time, as a model makes them: every character as soon as it is certain, none twice."""

from __future__ import annotations

from collections.abc import Sequence

from anyformer.tokenizer.core import Tokenizer

_INCOMPLETE = "\ufffd"
_LONGEST_HELD = 16
_WINDOW = 32
_KEPT = 6


class StreamDecoder:
    """Turns a stream of token ids into a stream of text.

    A token may hold half a character, and a token's text may depend on the one before it (a leading space),
    so a short window of the latest ids is decoded again at each push and what is new of its text handed out.
    The end of the window's text is held back while it might still change: a character whose bytes are
    incomplete decodes to U+FFFD. The pushes and the flush, joined, are the text of decoding all ids at once.
    """

    def __init__(self, tokenizer: Tokenizer, *, skip_special: bool = True) -> None:
        """Start a stream; special tokens have no text unless asked for."""
        self._tokenizer = tokenizer
        self._skip_special = skip_special
        self._clean_up_reach = 8 if tokenizer.cleans_up else 0
        self._window: list[int] = []
        self._sent = 0

    def push(self, token: int) -> str:
        """Take the next id and return the new text, "" while a character is incomplete."""
        self._window.append(token)
        text = self._decode(self._window)
        held = len(text) - len(text.rstrip(_INCOMPLETE))
        end = max(self._sent, len(text) - max(min(held, _LONGEST_HELD), self._clean_up_reach))
        new = text[self._sent : end]
        self._sent = max(self._sent, end)
        if len(self._window) >= _WINDOW and not held and not self._clean_up_reach:
            self._forget(text)
        return new

    def flush(self) -> str:
        """Return what was held back, at the end of the stream, and start afresh."""
        rest = self._decode(self._window)[self._sent :]
        self._window, self._sent = [], 0
        return rest

    def _forget(self, text: str) -> None:
        """Keep only the last few ids as context, if they decode alone to what they are in the whole."""
        tail = self._window[-_KEPT:]
        alone = self._decode(tail)
        if alone and _INCOMPLETE not in alone and text.endswith(alone):
            self._window, self._sent = tail, len(alone)

    def _decode(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode(ids, skip_special=self._skip_special)
