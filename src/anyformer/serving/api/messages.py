"""`/v1/messages`: conversations in Anthropic's words."""

import json
import secrets
from collections.abc import AsyncIterator
from functools import partial
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import Field
from typing_extensions import override

from anyformer.generation.config import GenerationOptions
from anyformer.serving.answers import STREAMED, EventStream, JsonAnswer, event
from anyformer.serving.api import fields
from anyformer.serving.api.turn import Call, Passage, Turn, assistant_message, tool_message
from anyformer.serving.errors import ApiError
from anyformer.serving.served_model import ServedModel
from anyformer.serving.state import ServerOf
from anyformer.serving.tool_formats import Function
from anyformer.serving.tool_parser import Arguments, CallBegin, Part, Text

router = APIRouter()


class _Part(fields.Strict):
    cache_control: dict[str, Any] | None = None
    """Changes nothing: prefixes that were read before are always reused."""


class TextBlock(_Part):
    """A text."""

    type: Literal["text"]
    text: str
    citations: None = None


class ToolUse(_Part):
    """A call that the model made."""

    type: Literal["tool_use"]
    id: str
    name: str
    input: dict[str, Any]


class ToolResult(_Part):
    """The result of a call."""

    type: Literal["tool_result"]
    tool_use_id: str
    content: str | Annotated[list[TextBlock], Field(fail_fast=True)] = ""
    is_error: bool | None = None
    """Changes nothing: the content says it."""


Block = Annotated[TextBlock | ToolUse | ToolResult, Field(discriminator="type")]


class Message(fields.Strict):
    """A message of a conversation."""

    role: Literal["user", "assistant"]
    content: str | Annotated[list[Block], Field(fail_fast=True)]


class Tool(_Part):
    """A tool that the model may use."""

    type: Literal["custom"] | None = None
    name: fields.ToolName
    description: str | None = None
    input_schema: dict[str, Any]
    strict: bool | None = None
    """Enforce the schema."""


class ToolChoice(fields.Strict):
    """Whether the model uses a tool."""

    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    """For the type tool: which one."""
    disable_parallel_tool_use: bool | None = None


class Thinking(fields.Strict):
    """Whether the model thinks before it answers; adaptive: as it likes. No answer shows it."""

    type: Literal["disabled", "adaptive"]
    display: Literal["omitted"] | None = None


class OutputFormat(fields.Strict):
    """A JSON schema that the answer obeys."""

    type: Literal["json_schema"]
    schema_: fields.Schema


class OutputConfig(fields.Strict):
    """The form of the answer."""

    format: OutputFormat | None = None


class ConversationBody(_Part, fields.RequestBody):
    """A conversation."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=fields.MOST_MESSAGES, fail_fast=True)]
    system: str | Annotated[list[TextBlock], Field(fail_fast=True)] | None = None
    tools: Annotated[list[Tool], Field(max_length=fields.MOST_TOOLS)] | None = None
    tool_choice: ToolChoice | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None

    def turn(self, served: ServedModel) -> Turn:
        """The turn that the request asks for. Raises ApiError for messages or tools that don't fit together."""
        rules = None
        if self.output_config is not None and self.output_config.format is not None:
            rules = fields.form_rules(self.output_config.format.schema_, None, "output_config")
        choice = self.tool_choice or ToolChoice(type="auto")
        if (choice.type == "tool") != (choice.name is not None):
            raise ApiError(400, "tool_choice has a name if its type is tool, and only then.", "tool_choice")
        tools = self.tools or ()
        return Turn(
            served=served,
            messages=self._shown(),
            functions=[Function(each.name, each.description, each.input_schema, bool(each.strict)) for each in tools],
            choice={"any": "required", "tool": "required"}.get(choice.type, choice.type),
            only=choice.name,
            parallel=not choice.disable_parallel_tool_use,
            rules=rules,
            rules_param="output_config",
        )

    def _shown(self) -> list[dict[str, Any]]:
        if self.messages[-1].role == "assistant":
            raise ApiError(400, "The last message is the user's: an answer can't be begun by the client.", "messages")
        shown, names = list[dict[str, Any]](), dict[str, str]()
        if self.system:
            shown.append({"role": "system", "content": fields.joined(self.system)})
        for number, message in enumerate(self.messages):
            param, content = f"messages.{number}.content", message.content
            blocks = [TextBlock(type="text", text=content)] if isinstance(content, str) else content
            text = "".join(block.text for block in blocks if isinstance(block, TextBlock))
            uses = [block for block in blocks if isinstance(block, ToolUse)]
            results = [block for block in blocks if isinstance(block, ToolResult)]
            if message.role == "assistant":
                if results:
                    raise ApiError(400, "A tool_result is the user's.", param)
                calls = [Call(use.id, use.name, json.dumps(use.input)) for use in uses]
                names |= {call.id: call.name for call in calls}
                shown.append(assistant_message(text, calls, param))
                continue
            if uses:
                raise ApiError(400, "A tool_use is the assistant's.", param)
            for result in results:
                shown.append(tool_message(names, result.tool_use_id, fields.joined(result.content), param))
            if text or not results:
                shown.append({"role": "user", "content": text})
        return shown


class MessagesRequest(ConversationBody, fields.TextBody):
    """A conversation that the model answers."""

    max_tokens: fields.Count
    top_k: Annotated[int, Field(ge=0)] | None = None
    stop_sequences: fields.Stops | None = None
    metadata: fields.Unused[dict[str, Any]] = None
    service_tier: fields.Unused[Literal["auto", "standard_only"]] = None
    speed: Literal["standard"] | None = None

    @override
    def options(self) -> GenerationOptions:
        options = super().options()
        if self.top_k is not None:
            options["top_k"] = self.top_k or None
        if self.stop_sequences:
            options["stop"] = tuple(self.stop_sequences)
        return options


@router.post("/v1/messages", response_model=None, responses=STREAMED)
async def messages(body: MessagesRequest, request: Request, server: ServerOf) -> Response:
    """Answer a conversation, as Anthropic's `/v1/messages`."""
    served = server.find(body.model)
    served.require_generative()
    writer = _Writer(body, body.turn(served))
    await writer.turn.begin(body.options(), 1, body.max_tokens)
    running = partial(server.running, served=served, streams=writer.turn.streams)
    if body.stream:
        return EventStream(writer.events(), running, lambda error: event(error.anthropic_body, "error"))
    async with running(request.receive):
        await writer.turn.whole()
        return JsonAnswer(writer.message())


@router.post("/v1/messages/count_tokens")
async def count_tokens(body: ConversationBody, server: ServerOf) -> dict[str, int]:
    """The number of tokens of a conversation, as Anthropic's `/v1/messages/count_tokens`."""
    served = server.find(body.model)
    served.require_generative()
    turn = body.turn(served)
    await turn.encode()
    return {"input_tokens": len(turn.ids)}


class _Writer:
    def __init__(self, body: MessagesRequest, turn: Turn) -> None:
        self.body, self.turn = body, turn
        self.id = f"msg_{secrets.token_hex(12)}"

    def message(self) -> dict[str, Any]:
        content = [_block(item) for item in self.turn.answers[0].items]
        return {**self._head(), "content": content, **self._end(), "usage": self._usage()}

    async def events(self) -> AsyncIterator[bytes]:

        def named(kind: str, **fields: Any) -> bytes:
            return event({"type": kind, **fields}, kind)

        usage = {"input_tokens": len(self.turn.ids), "output_tokens": 0}
        yield named("message_start", message={**self._head(), "content": [], **_NO_END, "usage": usage})
        async for _, _, steps in self.turn.steps():
            for step in steps:
                if step.begins:
                    if step.item:
                        yield named("content_block_stop", index=step.item - 1)
                    yield named("content_block_start", index=step.item, content_block=_begun(step.part))
                if (delta := _delta(step.part)) is not None:
                    yield named("content_block_delta", index=step.item, delta=delta)
        if items := self.turn.answers[0].items:
            yield named("content_block_stop", index=len(items) - 1)
        yield named("message_delta", delta=self._end(), usage=self._usage())
        yield named("message_stop")

    def _head(self) -> dict[str, Any]:
        return {"id": self.id, "type": "message", "role": "assistant", "model": self.body.model}

    def _end(self) -> dict[str, Any]:
        stop = self.turn.streams[0].request.stop_string
        stopped = "end_turn" if stop is None else "stop_sequence"
        reasons = {"stop": stopped, "length": "max_tokens", "tool_calls": "tool_use"}
        return {"stop_reason": reasons[self.turn.answers[0].finish or "stop"], "stop_sequence": stop}

    def _usage(self) -> dict[str, int]:
        return {"input_tokens": len(self.turn.ids), "output_tokens": len(self.turn.streams[0].request.tokens)}


_NO_END = {"stop_reason": None, "stop_sequence": None}


def _block(item: Passage | Call) -> dict[str, Any]:
    """A block of the answer. Arguments that were cut off, or are no JSON, are left out."""
    if isinstance(item, Passage):
        return {"type": "text", "text": item.text}
    return {"type": "tool_use", "id": item.id, "name": item.name, "input": item.parsed() or {}}


def _begun(part: Part) -> dict[str, Any]:
    if isinstance(part, CallBegin):
        return {"type": "tool_use", "id": part.id, "name": part.name, "input": {}}
    return {"type": "text", "text": ""}


def _delta(part: Part) -> dict[str, Any] | None:
    if isinstance(part, Text):
        return {"type": "text_delta", "text": part.text}
    return {"type": "input_json_delta", "partial_json": part.text} if isinstance(part, Arguments) else None
