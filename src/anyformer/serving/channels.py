"""Answers in channels, as gpt-oss writes them: reasoning, calls and the final text are messages of their own.

Source: OpenAI, harmony response format, https://github.com/openai/harmony/blob/main/docs/format.md
"""

import re
from collections.abc import Callable, Collection
from functools import partial

from anyformer.serving.tool_parser import LONGEST_HEAD, Arguments, CallBegin, Part, Reasoning, Text, call_id

FINAL = "<|channel|>final<|message|>"
"""The header of the message that answers."""
_BODY = "<|message|>"
_ENDS = ("<|end|>", "<|call|>", "<|return|>", "<|start|>")
_END = re.compile("|".join(map(re.escape, _ENDS)))
_HEADS = ("<|channel|>", "<|start|>", " to=", "to=")
"""Beginnings of a header; an answer that begins otherwise is a text without channels."""
_CHANNEL = re.compile(r"<\|channel\|>\s*(\w+)")
_RECIPIENT = re.compile(r"\bto=functions\.([\w.-]+)")


class ChannelParser:
    """Takes an answer apart that is made of messages. The parts are the same in whatever pieces it comes.

    Args:
        names: The tools that there are; a call of another is text.
    """

    def __init__(self, names: Collection[str]) -> None:
        self._names, self._buffer, self._calls = names, "", 0
        self._state = self._in_begin
        self._make: Callable[[str], Part] = Text

    def push(self, piece: str) -> list[Part]:
        """Append to the answer; returns what is certain by now."""
        self._buffer += piece
        parts = list[Part]()
        while (step := self._state()) is not None:
            parts += step
        return parts

    def flush(self) -> list[Part]:
        """The rest, at the end. A header that was cut off has no text."""
        left, self._buffer = self._buffer, ""
        return self._said(left) if self._state == self._in_body else []

    def _in_begin(self) -> list[Part] | None:
        """At the beginning of the answer. Returns parts, or None where more is to come first."""
        if any(head.startswith(self._buffer) for head in _HEADS):
            return None
        self._state = self._in_head if self._buffer.startswith(_HEADS) else self._in_body
        return []

    def _in_head(self) -> list[Part] | None:
        """In the header of a message: its channel and whom it is for."""
        head, mark, body = self._buffer.partition(_BODY)
        if not mark and len(head) <= LONGEST_HEAD:
            return None
        self._state, self._buffer = self._in_body, body if mark else head
        channel, recipient = _CHANNEL.search(head), _RECIPIENT.search(head)
        if mark and recipient is not None and recipient[1] in self._names:
            self._make, self._calls = partial(Arguments, self._calls), self._calls + 1
            return [CallBegin(self._calls - 1, call_id(), recipient[1])]
        self._make = Reasoning if channel is not None and channel[1] == "analysis" else Text
        return []

    def _in_body(self) -> list[Part] | None:
        found = _END.search(self._buffer)
        if found is not None:
            said, self._buffer, self._state = self._buffer[: found.start()], self._buffer[found.end() :], self._in_head
            return self._said(said)
        held = next((n for n in range(min(len(self._buffer), 9), 0, -1) if self._is_begun(self._buffer[-n:])), 0)
        said = self._buffer[: len(self._buffer) - held]
        self._buffer = self._buffer[len(said) :]
        return self._said(said) or None

    def _is_begun(self, text: str) -> bool:
        return any(end.startswith(text) for end in _ENDS)

    def _said(self, text: str) -> list[Part]:
        return [self._make(text)] if text else []
