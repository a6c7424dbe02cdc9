"""`/v1/responses`: answers as OpenAI's newer shape has them. Nothing is stored: the client sends the conversation."""

import secrets
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator
from functools import partial
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import Discriminator, Field, Tag

from anyformer.serving.answers import STREAMED, EventStream, JsonAnswer, event
from anyformer.serving.api import fields
from anyformer.serving.api.turn import Call, Passage, Turn, assistant_message, tool_message
from anyformer.serving.errors import ApiError
from anyformer.serving.served_model import ServedModel
from anyformer.serving.state import ServerOf
from anyformer.serving.tool_parser import Arguments, Reasoning, Text

router = APIRouter()


class _Item(fields.Strict):
    id: fields.Unused[str] = None
    status: fields.Unused[Literal["in_progress", "completed", "incomplete"]] = None


class ContentPart(fields.Strict):
    """A part of a message."""

    type: Literal["input_text", "output_text", "text"]
    text: str
    annotations: fields.Unused[list[Any]] = None
    logprobs: fields.Unused[list[Any]] = None


class MessageItem(_Item):
    """A message."""

    type: Literal["message"] = "message"
    role: Literal["system", "developer", "user", "assistant"]
    content: str | Annotated[list[ContentPart], Field(fail_fast=True)]
    phase: fields.Unused[str] = None


class CallItem(_Item):
    """A call that the model made."""

    type: Literal["function_call"]
    call_id: str
    name: str
    arguments: str
    """JSON."""


class ResultItem(_Item):
    """The result of a call."""

    type: Literal["function_call_output"]
    call_id: str
    output: str | Annotated[list[ContentPart], Field(fail_fast=True)]


def _kind(item: Any) -> str:
    return str(item.get("type", "message")) if isinstance(item, dict) else getattr(item, "type", "message")


Item = Annotated[
    Annotated[MessageItem, Tag("message")]
    | Annotated[CallItem, Tag("function_call")]
    | Annotated[ResultItem, Tag("function_call_output")],
    Discriminator(_kind),
]


class FunctionTool(fields.FunctionBody):
    """A function that the model may call."""

    type: Literal["function"]


class ChosenTool(fields.Strict):
    """A function that has to be called."""

    type: Literal["function"]
    name: fields.ToolName


class JsonBySchema(fields.NamedSchema):
    """JSON that obeys a schema."""

    type: Literal["json_schema"]


class TextOptions(fields.Strict):
    """The form of the text."""

    verbosity: Literal["medium"] | None = None
    format: Annotated[fields.PlainText | fields.JsonObject | JsonBySchema, Field(discriminator="type")] | None = None


class ReasoningOptions(fields.Strict):
    """How the model reasons: there is nothing to choose."""

    effort: None = None
    summary: None = None


class ResponsesRequest(fields.Ignored, fields.TextBody):
    """A conversation that the model answers."""

    input: str | Annotated[list[Item], Field(min_length=1, max_length=fields.MOST_MESSAGES, fail_fast=True)]
    instructions: str | None = None
    """A system message before the input."""
    max_output_tokens: fields.Count | None = None
    text: TextOptions | None = None
    tools: Annotated[list[FunctionTool], Field(max_length=fields.MOST_TOOLS)] | None = None
    tool_choice: fields.Choice | ChosenTool | None = None
    parallel_tool_calls: bool | None = None
    stream_options: fields.StreamOptions | None = None
    store: Literal[False] | None = None
    """Nothing is stored."""
    background: Literal[False] | None = None
    truncation: Literal["disabled"] | None = None
    include: list[Literal["reasoning.encrypted_content"]] | None = None
    """Changes nothing: no answer has reasoning."""
    reasoning: ReasoningOptions | None = None
    top_logprobs: Literal[0] | None = None
    metadata: dict[str, Any] | None = None
    """Comes back with the answer."""

    def turn(self, served: ServedModel) -> Turn:
        """The turn that the request asks for. Raises ApiError for items or tools that don't fit together."""
        schema = fields.schema_of(None if self.text is None else self.text.format)
        choice = self.tool_choice or "auto"
        named = isinstance(choice, ChosenTool)
        return Turn(
            served=served,
            messages=self._shown(),
            functions=[tool.made() for tool in self.tools or ()],
            choice="required" if named else choice,
            only=choice.name if named else None,
            parallel=self.parallel_tool_calls is not False,
            rules=None if schema is None else fields.form_rules(schema, None, "text.format"),
            rules_param="text.format",
        )

    def _shown(self) -> list[dict[str, Any]]:
        """The items as chat templates read them: calls belong to the assistant's message before them."""
        items = [MessageItem(role="user", content=self.input)] if isinstance(self.input, str) else self.input
        shown, names = list[dict[str, Any]](), dict[str, str]()
        if self.instructions:
            shown.append({"role": "system", "content": self.instructions})
        for number, item in enumerate(items):
            param = f"input.{number}"
            if isinstance(item, ResultItem):
                shown.append(tool_message(names, item.call_id, fields.joined(item.output), param))
            elif isinstance(item, CallItem):
                call = Call(item.call_id, item.name, item.arguments)
                names[call.id] = call.name
                message = assistant_message("", [call], param)
                if shown and shown[-1]["role"] == "assistant":
                    before = shown.pop()
                    calls = [*before.get("tool_calls", ()), *message["tool_calls"]]
                    message = {**before, "tool_calls": calls}
                shown.append(message)
            else:
                role = "system" if item.role == "developer" else item.role
                shown.append({"role": role, "content": fields.joined(item.content)})
        return shown


@router.post("/v1/responses", response_model=None, responses=STREAMED)
async def responses(body: ResponsesRequest, request: Request, server: ServerOf) -> Response:
    """Answer a conversation, as OpenAI's `/v1/responses`."""
    served = server.find(body.model)
    served.require_generative()
    writer = _Writer(body, body.turn(served))
    await writer.turn.begin(body.options(), 1, body.max_output_tokens)
    running = partial(server.running, served=served, streams=writer.turn.streams)
    if body.stream:
        return EventStream(writer.events(), running, writer.failed)
    async with running(request.receive):
        await writer.turn.whole()
        return JsonAnswer(writer.response())


class _Writer:
    def __init__(self, body: ResponsesRequest, turn: Turn) -> None:
        self.body, self.turn = body, turn
        self.id, self.created = f"resp_{secrets.token_hex(12)}", int(time.time())
        self._item_ids = defaultdict[int, str](lambda: f"item_{secrets.token_hex(12)}")
        self._sent = 0

    def response(self, error: dict[str, Any] | None = None) -> dict[str, Any]:
        body, answer, choice = self.body, self.turn.answers[0], self.body.tool_choice or "auto"
        items, last = range(0 if answer.finish is None else len(answer.items)), len(answer.items) - 1
        return {
            "id": self.id,
            "object": "response",
            "created_at": self.created,
            "status": "failed" if error else self.status,
            "error": error,
            "incomplete_details": {"reason": "max_output_tokens"} if answer.finish == "length" else None,
            "instructions": body.instructions,
            "max_output_tokens": body.max_output_tokens,
            "metadata": body.metadata or {},
            "model": body.model,
            "output": [self._item(index, self.status if index == last else "completed") for index in items],
            "parallel_tool_calls": body.parallel_tool_calls is not False,
            "previous_response_id": None,
            "store": False,
            "temperature": body.temperature,
            "text": {"format": {"type": "text"}} if body.text is None else body.text.model_dump(by_alias=True),
            "tool_choice": choice.model_dump() if isinstance(choice, ChosenTool) else choice,
            "tools": [{"strict": False, **tool.model_dump(exclude_none=True)} for tool in body.tools or ()],
            "top_p": body.top_p,
            "truncation": "disabled",
            "usage": None if answer.finish is None else self._usage(),
        }

    @property
    def status(self) -> str:
        """The status of the answer, and of its last item."""
        answer = self.turn.answers[0]
        if answer.finish is None:
            return "in_progress"
        return "incomplete" if answer.finish == "length" or answer.is_cut else "completed"

    async def events(self) -> AsyncIterator[bytes]:
        yield self._event("response.created", response=self.response())
        yield self._event("response.in_progress", response=self.response())
        answer = self.turn.answers[0]
        async for _, _, steps in self.turn.steps():
            for step in steps:
                if isinstance(step.part, Reasoning):
                    continue
                if step.begins:
                    for each in self._ended(step.item - 1):
                        yield each
                    for each in self._begun(step.item):
                        yield each
                place = {"item_id": self._item_ids[step.item], "output_index": step.item}
                if isinstance(step.part, Text):
                    piece = {"content_index": 0, "delta": step.part.text, "logprobs": []}
                    yield self._event("response.output_text.delta", **place, **piece)
                elif isinstance(step.part, Arguments):
                    yield self._event("response.function_call_arguments.delta", **place, delta=step.part.text)
        for each in self._ended(len(answer.items) - 1, self.status):
            yield each
        yield self._event(f"response.{self.status}", response=self.response())

    def failed(self, error: ApiError) -> bytes:
        return self._event("response.failed", response=self.response({"code": "server_error", "message": str(error)}))

    def _begun(self, index: int) -> Iterator[bytes]:
        """The events before the first piece of an item."""
        item, known = self._item(index, "in_progress"), {"item_id": self._item_ids[index], "content_index": 0}
        is_call = isinstance(self.turn.answers[0].items[index], Call)
        item |= {"arguments": ""} if is_call else {"content": []}
        yield self._event("response.output_item.added", output_index=index, item=item)
        if not is_call:
            yield self._event("response.content_part.added", output_index=index, **known, part=_part(""))

    def _ended(self, index: int, status: str = "completed") -> Iterator[bytes]:
        """The events behind the last piece of an item."""
        if index < 0:
            return
        item, place = self.turn.answers[0].items[index], {"item_id": self._item_ids[index], "output_index": index}
        if isinstance(item, Call):
            done = {"name": item.name, "arguments": item.arguments}
            yield self._event("response.function_call_arguments.done", **place, **done)
        else:
            text = {"content_index": 0, "text": item.text, "logprobs": []}
            yield self._event("response.output_text.done", **place, **text)
            yield self._event("response.content_part.done", **place, content_index=0, part=_part(item.text))
        yield self._event("response.output_item.done", output_index=index, item=self._item(index, status))

    def _event(self, kind: str, **fields: Any) -> bytes:
        self._sent += 1
        return event({"type": kind, "sequence_number": self._sent - 1, **fields}, kind)

    def _item(self, index: int, status: str) -> dict[str, Any]:
        item, known = self.turn.answers[0].items[index], {"id": self._item_ids[index], "status": status}
        if isinstance(item, Passage):
            return {"type": "message", **known, "role": "assistant", "content": [_part(item.text)]}
        return {"type": "function_call", **known, "call_id": item.id, "name": item.name, "arguments": item.arguments}

    def _usage(self) -> dict[str, Any]:
        request = self.turn.streams[0].request
        prompt, new = len(self.turn.ids), len(request.tokens)
        return {
            "input_tokens": prompt,
            "input_tokens_details": {"cached_tokens": request.cached_tokens, "cache_write_tokens": 0},
            "output_tokens": new,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": prompt + new,
        }


def _part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
