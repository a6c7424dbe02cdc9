"""Messages of a conversation in OpenAI's words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Field

from anyformer.serving.api.strict import Strict
from anyformer.serving.api.turn import Call, assistant_message, tool_message


class TextPart(Strict):
    """A part of a message."""

    type: Literal["text"]
    text: str


Content = str | list[TextPart]


def joined(content: Content | None) -> str:
    """The text of a message."""
    if content is None or isinstance(content, str):
        return content or ""
    return "".join(part.text for part in content)


class CalledFunction(Strict):
    """A function and its arguments."""

    name: str
    arguments: str
    """JSON."""


class ToolCall(Strict):
    """A call that the model made."""

    id: str
    type: Literal["function"]
    function: CalledFunction


class _Message(Strict):
    name: str | None = None
    """Changes nothing."""


class PlainMessage(_Message):
    """A message of the system or the user."""

    role: Literal["system", "developer", "user"]
    content: Content


class AssistantMessage(_Message):
    """A message of the model."""

    role: Literal["assistant"]
    content: Content | None = None
    tool_calls: list[ToolCall] | None = None
    reasoning_content: str | None = None
    """The model's thoughts before the message, as an answer of this server has them."""
    refusal: None = None
    annotations: Annotated[list[Any], Field(max_length=0)] | None = None
    audio: None = None
    function_call: None = None


class ToolMessage(_Message):
    """The result of a call."""

    role: Literal["tool"]
    content: Content
    tool_call_id: str


ChatMessage = Annotated[PlainMessage | AssistantMessage | ToolMessage, Field(discriminator="role")]


def rendered(messages: Sequence[PlainMessage | AssistantMessage | ToolMessage]) -> list[dict[str, Any]]:
    """The messages as chat templates read them.

    Raises:
        ApiError: a result without its call, or arguments that are no JSON object.
    """
    shown = list[dict[str, Any]]()
    for number, message in enumerate(messages):
        text = joined(message.content)
        if isinstance(message, ToolMessage):
            shown.append(tool_message(shown, message.tool_call_id, text, f"messages.{number}.tool_call_id"))
        elif isinstance(message, AssistantMessage):
            calls = [
                Call(id=call.id, name=call.function.name, arguments=call.function.arguments)
                for call in message.tool_calls or ()
            ]
            param = f"messages.{number}.tool_calls"
            shown.append(assistant_message(text, calls, param, message.reasoning_content))
        else:
            shown.append({"role": "system" if message.role == "developer" else message.role, "content": text})
    return shown
