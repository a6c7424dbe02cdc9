"""Arguments of a call as JSON that comes in pieces."""

from __future__ import annotations

import json


class JsonArguments:
    """A JSON object, or a string with JSON in it."""

    def __init__(self) -> None:
        self._depth, self._quoted, self._escaped, self._held, self._is_string = 0, False, False, "", False

    def push(self, text: str) -> tuple[str, str | None]:
        """Append; returns the piece of JSON that is certain by now, and what follows them, or None before their end."""
        for position, character in enumerate(text):
            if self._escaped:
                self._escaped = False
            elif self._quoted:
                self._escaped = character == "\\"
                self._quoted = character != '"'
            elif character == '"':
                self._quoted = True
                self._is_string |= self._depth == 0
            elif character in "{[":
                self._depth += 1
            elif character in "}]":
                self._depth -= 1
            if self._depth == 0 and not self._quoted:
                return self._take(text[: position + 1], whole=True), text[position + 1 :]
        return self._take(text, whole=False), None

    def _take(self, text: str, whole: bool) -> str:
        if not self._is_string:
            return text
        self._held += text
        if not whole:
            return ""
        try:
            return json.loads(self._held)
        except ValueError:
            return self._held
