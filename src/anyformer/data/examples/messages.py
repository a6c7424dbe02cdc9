"""Conversations: lists of messages with role and content or text, or with from and value, as ShareGPT has them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, cast

from anyformer.data.examples import ChatExample, Message, Where
from anyformer.data.examples.parts import Parts, as_list, as_object, as_text, fault, from_json, kind_of
from anyformer.errors import UserError, nearest, quote

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
"""Keys of what is said, of which the first that is there counts."""
_DROPPED = ("role", "content", "from", "value", "train", "weight", "tool_calls", "function_call")
"""Keys of a message that are read here; all others are left to the template."""


def conversation(parts: Parts, messages: Sequence[Message], learned: Sequence[bool]) -> ChatExample:
    """An example of messages that have been read, with the row's system message and tools.

    Raises:
        UserError: No message can be learned, or the order of roles makes no sense.
    """
    where = parts.where
    if parts.has("system") and (system := parts.text("system", empty=True)) and messages[0]["role"] != "system":
        messages, learned = [{"role": "system", "content": system}, *messages], [False, *learned]
    _check_order(messages, where)
    if not any(message["role"] == "assistant" for message in messages):
        raise fault(where, "has no message of the assistant", "there is nothing to learn")
    return ChatExample(where=where, messages=messages, learned=learned, tools=_tools(parts))


def read_messages(value: object, where: Where, place: str) -> tuple[list[Message], list[bool]]:
    """Read a list of messages.

    Returns:
        The messages as chat templates take them, and for each whether it is learned: those of the assistant are,
        unless they say `"train": false` or `"weight": 0`.

    Raises:
        UserError: One of them is faulty.
    """
    messages, learned = list[Message](), list[bool]()
    for number, each in enumerate(as_list(value, where, place), start=1):
        own = f"message {number} of {place}"
        message, is_learned = read_message(as_object(each, where, own), where, own)
        messages.append(message)
        learned.append(is_learned)
    return messages, learned


def text_or_messages(value: object, where: Where, place: str) -> str | tuple[list[Message], list[bool]]:
    """Read a text, a message or a list of messages, see `read_messages`; messages may be written as JSON."""
    if isinstance(value, str) and value.lstrip().startswith("[{"):
        with suppress(UserError):  # a text may begin like this, too
            found = from_json(value, where, place)
            if {"role", "from"} & cast("list[dict[str, Any]]", found)[0].keys():
                value = found
    if isinstance(value, str):
        return value
    if isinstance(value, dict):
        value = [cast("dict[str, Any]", value)]
    if not isinstance(value, list):
        raise fault(where, f"has no text and no messages in {place}", f"that is {kind_of(value)}")
    return read_messages(cast("list[object]", value), where, place)


def read_message(given: Mapping[str, Any], where: Where, place: str) -> tuple[Message, bool]:
    """Read a message, and whether it is learned. Raises UserError where it is faulty."""
    said = given.get("role", given.get("from"))
    if said is None:
        raise fault(where, f"has no role in {place}", 'a message is like {"role": "user", "content": "..."}')
    name = as_text(said, where, f"the role of {place}").strip().lower()
    role = ROLES.get(name)
    if role is None:
        raise fault(where, f"has an unknown role in {place}, {quote(name)}", nearest(name, ROLES))
    said_in = next((key for key in _CONTENT if given.get(key) is not None), "content")
    content = given.get(said_in)
    calls = _calls(given, name, content, where, place)
    if name in _CALLS:
        content = None
    text = "" if content is None and calls else _content(content, where, f"the content of {place}")
    is_learned = role == "assistant" and _is_trained(given, where, place)
    if not text.strip() and not calls and is_learned:
        raise fault(where, f"has an empty answer in {place}", 'fill it in, or mark the message with "train": false')
    message: dict[str, Any] = {"role": role, "content": text}
    message |= {key: each for key, each in given.items() if key not in (*_DROPPED, said_in) and each is not None}
    return message | ({"tool_calls": calls} if calls else {}), is_learned


def _content(value: object, where: Where, place: str) -> str:
    """A text, or the texts of a list of parts."""
    if not isinstance(value, list):
        return as_text(value, where, place, empty=True)
    texts = list[str]()
    for part in cast("list[object]", value):
        found = as_object(part, where, place) if not isinstance(part, str) else {"type": "text", "text": part}
        if found.get("type", "text") != "text":
            raise fault(where, f"has something else than text in {place}", f"{quote(str(found['type']))}")
        texts.append(as_text(found.get("text"), where, place, empty=True))
    return "".join(texts)


def _is_trained(given: Mapping[str, Any], where: Where, place: str) -> bool:
    train, weight = given.get("train"), given.get("weight")
    if train is not None and not isinstance(train, bool):
        raise fault(where, f'has {kind_of(train)} as "train" in {place}', "that is true or false")
    if weight is not None and (isinstance(weight, bool) or weight not in (0, 1)):
        raise fault(where, f'has another "weight" than 0 and 1 in {place}', "a message is learned or it is not")
    return train is not False and weight != 0


def _calls(given: Mapping[str, Any], name: str, content: object, where: Where, place: str) -> list[Any]:
    """The calls of functions in a message."""
    calls: object = given.get("tool_calls")
    if name in _CALLS:
        calls = from_json(content, where, place)
    elif calls is None:
        calls = given.get("function_call")
    if calls is None or calls == []:
        return []
    found = cast("list[object]", calls) if isinstance(calls, list) else [calls]
    return [_call(each, where, f"a call in {place}") for each in found]


def _call(value: object, where: Where, place: str) -> dict[str, Any]:
    """A call as chat templates take it, with its arguments as an object."""
    call = as_object(from_json(value, where, place), where, place)
    function = as_object(call.get("function", call), where, place)
    name = as_text(function.get("name"), where, f"the name of {place}")
    arguments = from_json(function.get("arguments", {}), where, f"the arguments of {place}")
    if not isinstance(arguments, dict | str):
        raise fault(where, f"has no object in the arguments of {place}", f"that is {kind_of(arguments)}")
    kept = {"id": call["id"]} if isinstance(call.get("id"), str) else {}
    return {**kept, "type": "function", "function": {"name": name, "arguments": arguments}}


def _tools(parts: Parts) -> Sequence[Any] | None:
    if not parts.has("tools"):
        return None
    place = f"its column {quote(parts.column('tools'))}"
    value = from_json(parts.get("tools"), parts.where, place)
    if value in ("", []):
        return None
    return [as_object(each, parts.where, place) for each in as_list(value, parts.where, place)]


def _check_order(messages: Sequence[Message], where: Where) -> None:
    before = ""
    for number, message in enumerate(messages, start=1):
        role = message["role"]
        if role == "system" and before not in ("", "system"):
            raise fault(where, f"has a system message as message {number}", "it must be the first one")
        if role == "tool" and before not in ("assistant", "tool"):
            raise fault(where, f"has the answer of a tool as message {number}", "it must follow the assistant's call")
        before = role
