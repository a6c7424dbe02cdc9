"""The parts of an example in a row, checked; conversations among them.

These are lists of messages with role and content or text, or with from and value, as ShareGPT has them.
"""

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from types import MappingProxyType
from typing import Any, cast

from anyformer import limits
from anyformer.data.examples import ChatExample, Message
from anyformer.data.formats import Location
from anyformer.data.rows import MISSING, Row, find, measure, unknown_field
from anyformer.errors import UserError, nearest, quote

NAMED = 'give the names of the labels that a text has, such as ["a", "c"]'
"""Advice on a 0 or 1, true or false for each label."""
_LARGEST = 3e38
"""A number that fits into 32 bits; targets have as many."""
ROLES: Mapping[str, str] = {
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("user", "human"), "user"),
    **dict.fromkeys(("assistant", "gpt", "model", "bot", "chatgpt", "bing", "bard"), "assistant"),
    **dict.fromkeys(("tool", "observation", "function", "function_response", "tool_response", "ipython"), "tool"),
    **dict.fromkeys(("function_call", "tool_call"), "assistant"),
}
"""Roles of a conversation in data, and in chat templates."""
_CALLS = ("function_call", "tool_call")
_CONTENT = ("content", "value", "text")
"""Keys of a message's content, of which the first that is there counts."""
_DROPPED = ("role", "content", "from", "value", "train", "weight", "tool_calls", "function_call")
"""Keys of a message that are read here; all others are left to the template."""


class Parts:
    """The parts of an example in a row; each method raises UserError with the location of what is wrong.

    Args:
        required: The column of each part that every row has.
        optional: The columns, in order of preference, that may hold an optional part.
    """

    def __init__(
        self, row: Row, required: Mapping[str, str], optional: Mapping[str, Sequence[str]] = MappingProxyType({})
    ) -> None:
        self.location, self.row, self.required, self._optional = row.location, row, required, optional

    def find(self, column: str) -> object:
        """The value of a column; None where there is none."""
        value = find(self.row.values, column)
        return None if value is MISSING else value

    def column(self, part: str) -> str:
        """The column of a part: the first of the possible ones that the row has, if it is optional."""
        if part in self.required:
            return self.required[part]
        names = self._optional.get(part, (part,))
        return next((name for name in names if self.find(name) is not None), names[0])

    def has(self, part: str) -> bool:
        """Whether the part is one of these, and the row has it, not null."""
        return (part in self.required or part in self._optional) and self.get(part) is not None

    def get(self, part: str) -> Any:
        """The value of a part; None where there is none."""
        return self.find(self.column(part))

    def value(self, part: str) -> Any:
        """The value of a part that must be there."""
        column = self.column(part)
        value = find(self.row.values, column)
        if value is MISSING:
            raise UserError(f"{self.location}, {unknown_field(column, self.row.values, 'column')}")
        if value is None:
            raise fault(self.location, f"has nothing in its column {quote(column)}")
        return value

    def place(self, part: str) -> str:
        """The column of a part, for messages."""
        return f"its column {quote(self.column(part))}"

    def text(self, part: str, *, empty: bool = False) -> str:
        """A text; `empty`: whether it may be empty or null, or missing if it is optional."""
        if empty and self.get(part) is None and (part not in self.required or self.column(part) in self.row.values):
            return ""
        return as_text(self.value(part), self.location, self.place(part), empty=empty)

    def number(self, part: str) -> float:
        """A finite number, which may be written as a text."""
        return as_number(self.value(part), self.location, self.place(part))

    def items(self, part: str) -> list[Any]:
        """A list that isn't empty, which may be written as JSON."""
        return as_list(self.value(part), self.location, self.place(part))


def read_label(parts: Parts) -> Any:
    """A label as the row has it: a text, a number, a boolean, or a tuple of texts or whole numbers."""
    place, value = parts.place("label"), parts.value("label")
    if isinstance(value, str) and value.lstrip().startswith("["):
        with suppress(UserError):  # a name may begin like a list, too
            value = from_json(value, parts.location, place)
    if isinstance(value, str):
        return as_text(value, parts.location, place).strip()
    if isinstance(value, list):
        for each in cast("list[object]", value):
            if not isinstance(each, str | int) or isinstance(each, bool) or each == "":
                advice = NAMED if isinstance(each, bool) else "labels are names or numbers"
                raise fault(parts.location, f"has {kind_of(each)} in the list of {place}", advice)
        return tuple(cast("list[str | int]", value))
    if not isinstance(value, bool | int | float):
        raise fault(parts.location, f"has no label in {place}", f"that is {kind_of(value)}")
    return value


def fault(location: Location, problem: str, advice: str | None = None) -> UserError:
    """The error for a row."""
    end = "" if advice and advice.endswith("?") else "."
    return UserError(f"{location}, {problem}" + (f": {advice}" if advice else "") + end)


def kind_of(value: object) -> str:
    """The name that people give a value of this type."""
    kinds = (
        (str, "a text"),
        (bool, "true or false"),
        (int | float, "a number"),
        ((list, tuple), "a list"),
        (Mapping, "an object"),
        (type(None), "nothing"),
    )
    return next((name for kind, name in kinds if isinstance(value, kind)), f"of type {type(value).__name__}")


def as_text(value: object, location: Location, place: str, *, empty: bool = False) -> str:
    """A text, or raise UserError."""
    if not isinstance(value, str):
        raise fault(location, f"has no text in {place}", f"that is {kind_of(value)}")
    if not empty and not value.strip():
        raise fault(location, f"has an empty text in {place}", "fill it in, or leave the row out")
    return value


def as_list(value: object, location: Location, place: str) -> list[Any]:
    """A list that isn't empty, which may be written as JSON, or raise UserError."""
    items = from_json(value, location, place)
    if not isinstance(items, list):
        raise fault(location, f"has no list in {place}", f"that is {kind_of(value)}")
    if not items:
        raise fault(location, f"has an empty list in {place}")
    return cast("list[Any]", items)


def as_object(value: object, location: Location, place: str) -> dict[str, Any]:
    """An object, or raise UserError."""
    if not isinstance(value, dict):
        raise fault(location, f"has no object in {place}", f"that is {kind_of(value)}")
    return cast("dict[str, Any]", value)


def as_number(value: object, location: Location, place: str) -> float:
    """A number, which may be written as a text, or raise UserError."""
    number = number_of(value)
    if number is None:
        actual = repr(value[:40]) if isinstance(value, str) else kind_of(value)
        raise fault(location, f"has no number in {place}", f"that is {actual}")
    if not abs(number) <= _LARGEST:
        raise fault(location, f"has {number:g} in {place}", "only finite numbers below 3e38 can be learned")
    return number


def number_of(value: object) -> float | None:
    """The number that a value is, or spells; None where it does neither."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        return float(value)
    except OverflowError:
        return math.inf
    except ValueError:
        return None


def from_json(value: object, location: Location, place: str) -> object:
    """The list or object that a text describes, if it begins like one; any other value as it is."""
    if not isinstance(value, str) or value.lstrip()[:1] not in ("[", "{"):
        return value
    parsed: object = limits.parse_json(value, f"{location}: {place}")
    measure({"": parsed}, location)
    return parsed


def conversation(parts: Parts, messages: Sequence[Message], loss_mask: Sequence[bool]) -> ChatExample:
    """An example of messages that have been read, with the row's system message and tools.

    Raises UserError where no message can be learned, or the order of roles makes no sense.
    """
    if parts.has("system") and (system := parts.text("system", empty=True)) and messages[0]["role"] != "system":
        messages, loss_mask = [{"role": "system", "content": system}, *messages], [False, *loss_mask]
    before = ""
    for number, role in enumerate((message["role"] for message in messages), start=1):
        if role == "system" and before not in ("", "system"):
            raise fault(parts.location, f"has a system message as message {number}", "it must be the first one")
        if role == "tool" and before not in ("assistant", "tool"):
            advice = "it must follow the assistant's call"
            raise fault(parts.location, f"has the answer of a tool as message {number}", advice)
        before = role
    if not any(message["role"] == "assistant" for message in messages):
        raise fault(parts.location, "has no message of the assistant", "there is nothing to learn")
    tools = from_json(parts.get("tools"), parts.location, parts.place("tools")) if parts.has("tools") else None
    if tools in ("", []):
        tools = None
    elif tools is not None:
        place = parts.place("tools")
        tools = [as_object(each, parts.location, place) for each in as_list(tools, parts.location, place)]
    return ChatExample(location=parts.location, messages=messages, loss_mask=loss_mask, tools=tools)


def read_messages(value: object, location: Location, place: str) -> tuple[list[Message], list[bool]]:
    """Read a list of messages: as chat templates take them, and for each whether its tokens are targets.

    Those of the assistant are, unless they say `"train": false` or `"weight": 0`. Raises UserError for a faulty
    message.
    """
    messages, loss_mask = list[Message](), list[bool]()
    for number, each in enumerate(as_list(value, location, place), start=1):
        own = f"message {number} of {place}"
        message, is_target = read_message(as_object(each, location, own), location, own)
        messages.append(message)
        loss_mask.append(is_target)
    return messages, loss_mask


def text_or_messages(value: object, location: Location, place: str) -> str | tuple[list[Message], list[bool]]:
    """Read a text, a message or a list of messages, see `read_messages`; messages may be written as JSON."""
    if isinstance(value, str) and value.lstrip().startswith("[{"):
        with suppress(UserError):  # a text may begin like this, too
            parsed = from_json(value, location, place)
            if {"role", "from"} & cast("list[dict[str, Any]]", parsed)[0].keys():
                value = parsed
    if isinstance(value, str):
        return value
    if isinstance(value, dict):
        value = [cast("dict[str, Any]", value)]
    if not isinstance(value, list):
        raise fault(location, f"has no text and no messages in {place}", f"that is {kind_of(value)}")
    return read_messages(cast("list[object]", value), location, place)


def read_message(fields: Mapping[str, Any], location: Location, place: str) -> tuple[Message, bool]:
    """Read a message, and whether its tokens are targets. Raises UserError where it is faulty."""
    author = fields.get("role", fields.get("from"))
    if author is None:
        raise fault(location, f"has no role in {place}", 'a message is like {"role": "user", "content": "..."}')
    name = as_text(author, location, f"the role of {place}").strip().lower()
    role = ROLES.get(name)
    if role is None:
        raise fault(location, f"has an unknown role in {place}, {quote(name)}", nearest(name, ROLES))
    content_key = next((key for key in _CONTENT if fields.get(key) is not None), "content")
    content = fields.get(content_key)
    calls = _calls(fields, name, content, location, place)
    if name in _CALLS:
        content = None
    text = "" if content is None and calls else _content(content, location, f"the content of {place}")
    is_target = role == "assistant" and _is_trained(fields, location, place)
    if not text.strip() and not calls and is_target:
        raise fault(location, f"has an empty answer in {place}", 'fill it in, or mark the message with "train": false')
    message: dict[str, Any] = {"role": role, "content": text}
    message |= {key: each for key, each in fields.items() if key not in (*_DROPPED, content_key) and each is not None}
    return message | ({"tool_calls": calls} if calls else {}), is_target


def _content(value: object, location: Location, place: str) -> str:
    """A text, or the texts of a list of parts."""
    if not isinstance(value, list):
        return as_text(value, location, place, empty=True)
    texts = list[str]()
    for part in cast("list[object]", value):
        fields = as_object(part, location, place) if not isinstance(part, str) else {"type": "text", "text": part}
        if fields.get("type", "text") != "text":
            raise fault(location, f"has something else than text in {place}", f"{quote(str(fields['type']))}")
        texts.append(as_text(fields.get("text"), location, place, empty=True))
    return "".join(texts)


def _is_trained(fields: Mapping[str, Any], location: Location, place: str) -> bool:
    train, weight = fields.get("train"), fields.get("weight")
    if train is not None and not isinstance(train, bool):
        raise fault(location, f'has {kind_of(train)} as "train" in {place}', "that is true or false")
    if weight is not None and (isinstance(weight, bool) or weight not in (0, 1)):
        raise fault(location, f'has another "weight" than 0 and 1 in {place}', "a message is learned or it is not")
    return train is not False and weight != 0


def _calls(fields: Mapping[str, Any], name: str, content: object, location: Location, place: str) -> list[Any]:
    calls: object = fields.get("tool_calls")
    if name in _CALLS:
        calls = from_json(content, location, place)
    elif calls is None:
        calls = fields.get("function_call")
    if calls is None or calls == []:
        return []
    calls = cast("list[object]", calls) if isinstance(calls, list) else [calls]
    return [_call(each, location, f"a call in {place}") for each in calls]


def _call(value: object, location: Location, place: str) -> dict[str, Any]:
    """A call as chat templates take it, with its arguments as an object."""
    call = as_object(from_json(value, location, place), location, place)
    function = as_object(call.get("function", call), location, place)
    name = as_text(function.get("name"), location, f"the name of {place}")
    arguments = from_json(function.get("arguments", {}), location, f"the arguments of {place}")
    if not isinstance(arguments, dict | str):
        raise fault(location, f"has no object in the arguments of {place}", f"that is {kind_of(arguments)}")
    identity = {"id": call["id"]} if isinstance(call.get("id"), str) else {}
    return {**identity, "type": "function", "function": {"name": name, "arguments": arguments}}
