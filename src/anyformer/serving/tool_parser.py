"""Calls of tools within a text that comes in pieces, and answers in channels, as gpt-oss writes them.

Source of the channels: OpenAI, harmony response format,
https://github.com/openai/harmony/blob/main/docs/format.md
"""

import json
import re
import secrets
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from anyformer.generation.stop_strings import begun
from anyformer.serving.tool_formats import Tags, ToolFormat, parsed_object, property_of, types_of

LONGEST_HEAD = 4096
"""Characters after which what began like a call is taken for text."""


@dataclass(frozen=True)
class Text:
    """A piece of the text."""

    text: str


@dataclass(frozen=True)
class Reasoning:
    """A piece of what the model thinks before it answers."""

    text: str


@dataclass(frozen=True)
class CallBegin:
    """The beginning of a call."""

    index: int
    id: str
    name: str


@dataclass(frozen=True)
class Arguments:
    """A piece of a call's arguments, which are JSON."""

    index: int
    text: str


Part = Text | Reasoning | CallBegin | Arguments
_PYTHON_TAG = "<|python_tag|>"


def call_id() -> str:
    """The id of a call: nine letters and digits, as Mistral's templates want them."""
    return secrets.token_hex(5)[:9]


class JsonArguments:
    """Arguments of a call that come in pieces: a JSON object, or a string with JSON in it."""

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


class TaggedArguments:
    """Keys and values between tags, which become JSON as the schema says: a text stays one, even if it looks like JSON.

    Args:
        tags: How they are written.
        schema: The JSON schema of the arguments.
    """

    def __init__(self, tags: Tags, schema: Mapping[str, Any]) -> None:
        self._tags, self._schema = tags, schema
        self._held, self._begun = "", False

    def push(self, text: str) -> tuple[str, str | None]:
        """Append; returns as `JsonArguments.push`. A value is certain at its end."""
        tags, made = self._tags, ""
        self._held += text
        while tags.close in self._held and (pair := re.match(tags.pair, self._held, re.DOTALL)):
            value = _json(pair["value"], property_of(self._schema, pair["key"]))
            made += f"{', ' if self._begun else '{'}{json.dumps(pair['key'], ensure_ascii=False)}: {value}"
            self._begun, self._held = True, self._held[pair.end() :]
        rest = self._held.lstrip()
        if rest.startswith(tags.open) or any(mark != rest and mark.startswith(rest) for mark in (tags.open, tags.end)):
            return made, None
        return made + ("}" if self._begun else "{}"), rest.removeprefix(tags.end)


def _json(text: str, schema: Mapping[str, Any]) -> str:
    """A value that was written without quotes, as JSON."""
    types, bare = types_of(schema), text.strip()
    if not types or types - {"string", "null"} or (bare == "null" and "null" in types):
        for spelled in (bare, bare.lower()):
            try:
                json.loads(spelled, parse_constant=_refuse)
            except (ValueError, RecursionError):
                continue
            return spelled
    return json.dumps(text, ensure_ascii=False)


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON.")


class Parser:
    """Takes an answer apart. The parts are the same in whatever pieces it comes."""

    def __init__(self, state: Callable[[bool], list[Part] | None]) -> None:
        self._buffer = ""
        self._state = state
        """Takes parts from the buffer; None: more is to come first. Its argument: no more comes."""

    def push(self, piece: str) -> list[Part]:
        """Append to the answer; returns what is certain by now."""
        self._buffer += piece
        return self._run(over=False)

    def flush(self) -> list[Part]:
        """The rest, at the end."""
        return self._run(over=True)

    def _run(self, over: bool) -> list[Part]:
        parts = list[Part]()
        while (step := self._state(over)) is not None:
            parts += step
        return parts


class ToolParser(Parser):
    """Finds calls in an answer.

    Args:
        schemas: The JSON schemas of the tools that there are, by name; a call of another is text.
    """

    def __init__(self, form: ToolFormat, schemas: Mapping[str, Mapping[str, Any]]) -> None:
        super().__init__(self._in_text)
        self._form, self._schemas = form, schemas
        self._arguments: JsonArguments | TaggedArguments = JsonArguments()
        self._shown = False
        self.calls = 0
        """Calls so far."""
        closers = [re.escape(each) for each in {*_words(form), form.close} if each]
        self._skip = re.compile(rf'(?:[\s;,\]}}]|,\s*"id"\s*:\s*"\w*"|{"|".join(closers) or "(?!)"})*')

    def _in_text(self, over: bool) -> list[Part] | None:
        buffer, trigger = self._buffer, self._form.trigger
        if not buffer:
            return None
        if not trigger:
            return self._alone(over)
        at = buffer.find(trigger)
        held = 0 if over and not self.calls else begun(buffer, (trigger,))
        text = buffer[: at if at >= 0 else len(buffer) - held]
        if at >= 0 or not over or (self.calls and not text.strip()):
            text = text.rstrip()  # space before or behind a call is no part of the text
        self._buffer = "" if over and at < 0 else buffer[len(text) :]
        if at >= 0:
            self._state = self._in_calls
            return self._text(text)
        return self._text(text) or None

    def _alone(self, over: bool) -> list[Part] | None:
        """A form without a trigger: the whole answer is calls, or none of it."""
        start = self._buffer.lstrip()
        if not self._shown:
            behind = start.removeprefix(_PYTHON_TAG).lstrip()
            if behind.startswith("{"):
                self._state = self._in_calls
                return []
            if not over and (not behind or _PYTHON_TAG.startswith(start)):
                return None
        return self._text(self._take())

    def _in_calls(self, over: bool) -> list[Part] | None:
        if not self._buffer:
            return None
        rest = self._buffer[self._skipped(self._buffer) :] if self.calls else self._buffer
        behind = rest.lstrip().removeprefix(self._form.trigger)
        head, whole = self._form.start_of_call(behind), _first_object(behind)
        if head is not None and head.end() <= LONGEST_HEAD:
            value = behind[head.end() :]
            if not value and not over:
                return None
            tags, schema = self._form.tags, self._schemas.get(head["name"])
            if schema is not None and value.startswith(("{", '"') if tags is None else "<"):
                self._buffer, self._state = value, self._in_arguments
                self._arguments = JsonArguments() if tags is None else TaggedArguments(tags, schema)
                return self._begin(head["name"])
        elif whole is not None and (found := parsed_object(whole)) is not None and found[0] in self._schemas:
            self._buffer, self._state = behind[behind.find(whole) + len(whole) :], self._after_call
            return [*self._begin(found[0]), Arguments(self.calls - 1, found[1])]
        elif not over and whole is None and len(behind) <= LONGEST_HEAD:
            return None
        if over and self.calls and whole is None and behind.lstrip()[:1] in ("", "{", "[", "<"):
            self._buffer = ""  # the beginning of a further call, which was cut off
            return []
        # It is no call: all of it is text, and so is what follows.
        self._buffer, self._state = rest, self._in_plain_text
        return []

    def _skipped(self, text: str) -> int:
        """The length of what may stand between two calls."""
        skipped = self._skip.match(text)
        return 0 if skipped is None else skipped.end()

    def _begin(self, name: str) -> list[Part]:
        self.calls += 1
        return [CallBegin(self.calls - 1, call_id(), name)]

    def _in_arguments(self, over: bool) -> list[Part] | None:
        if not self._buffer:
            return None
        text, rest = self._arguments.push(self._buffer)
        self._buffer = rest or ""
        if rest is not None:
            self._state = self._after_call
        return [Arguments(self.calls - 1, text)] if text else []

    def _after_call(self, over: bool) -> list[Part] | None:
        end, buffer = self._form.end, self._buffer
        at = buffer.find(end) if end else -1
        inner = buffer if at < 0 else buffer[:at]
        # Several calls may be listed before the end.
        if not end or self._form.start_of_call(inner[self._skipped(inner) :]) is not None:
            self._state = self._in_calls
            return []
        if at < 0:
            return None
        self._buffer, self._state = buffer[at + len(end) :], self._in_text
        return []

    def _in_plain_text(self, over: bool) -> list[Part] | None:
        return self._text(self._take()) if self._buffer else None

    def _take(self) -> str:
        taken, self._buffer = self._buffer, ""
        return taken

    def _text(self, text: str) -> list[Part]:
        if not text:
            return []
        self._shown = True
        return [Text(text)]


def _words(form: ToolFormat) -> list[str]:
    """The words behind the arguments of a call."""
    after = form.call.split("ARGUMENTS")[1].strip()
    return [after, *([after[1:].strip()] if after.startswith("}") else [])]


def _first_object(text: str) -> str | None:
    """The first JSON object of a text, if it is whole."""
    at = text.find("{")
    if at < 0:
        return None
    _, rest = JsonArguments().push(text[at:])
    return None if rest is None else text[at : len(text) - len(rest)]


FINAL = "<|channel|>final<|message|>"
"""The header of the message that answers."""
_BODY = "<|message|>"
_ENDS = ("<|end|>", "<|call|>", "<|return|>", "<|start|>")
_END = re.compile("|".join(map(re.escape, _ENDS)))
_HEADS = ("<|channel|>", "<|start|>", " to=", "to=")
"""Beginnings of a header; an answer that begins otherwise is a text without channels."""
_CHANNEL = re.compile(r"<\|channel\|>\s*(\w+)")
_RECIPIENT = re.compile(r"\bto=functions\.([\w.-]+)")


class ChannelParser(Parser):
    """Takes an answer apart that is made of messages: reasoning, calls and the final text.

    Args:
        names: The tools that there are; a call of another is text.
    """

    def __init__(self, names: Collection[str]) -> None:
        super().__init__(self._in_begin)
        self._names, self._calls = names, 0
        self._make: Callable[[str], Part] = Text

    def _in_begin(self, over: bool) -> list[Part] | None:
        if any(head.startswith(self._buffer) for head in _HEADS):
            return None
        self._state = self._in_head if self._buffer.startswith(_HEADS) else self._in_body
        return []

    def _in_head(self, over: bool) -> list[Part] | None:
        """In the header of a message: its channel and whom it is for. One that is cut off has no text."""
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

    def _in_body(self, over: bool) -> list[Part] | None:
        found = _END.search(self._buffer)
        if found is not None:
            said, self._buffer, self._state = self._buffer[: found.start()], self._buffer[found.end() :], self._in_head
            return self._said(said)
        held = 0 if over else begun(self._buffer, _ENDS)
        said = self._buffer[: len(self._buffer) - held]
        self._buffer = self._buffer[len(said) :]
        return self._said(said) or None

    def _said(self, text: str) -> list[Part]:
        return [self._make(text)] if text else []
