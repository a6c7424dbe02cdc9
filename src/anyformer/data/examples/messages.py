"""Conversations: lists of messages with role and content or text, or with from and value, as ShareGPT has them."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, cast

from anyformer.data.examples import ChatExample, Message
from anyformer.data.examples.parts import Parts, as_list, as_object, as_text, fault, from_json, kind_of
from anyformer.data.formats import Location
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
"""Keys of a message's content, of which the first that is there counts."""
_DROPPED = ("role", "content", "from", "value", "train", "weight", "tool_calls", "function_call")
"""Keys of a message that are read here; all others are left to the template."""


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
