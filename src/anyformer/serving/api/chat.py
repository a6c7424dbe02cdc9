"""`/v1/chat/completions`: conversations in the words of the model's own chat template."""

import secrets
import time
from collections.abc import AsyncIterator, Sequence
from functools import partial
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import Field

from anyformer.serving.answers import DONE, STREAMED, Chunks, EventStream, JsonAnswer, shown_logprobs, spelled, usage
from anyformer.serving.api import fields
from anyformer.serving.api.turn import Answer, Call, Turn, assistant_message, tool_message
from anyformer.serving.errors import ApiError
from anyformer.serving.served_model import ServedModel
from anyformer.serving.state import ServerOf
from anyformer.serving.tool_parser import CallBegin, Part, Reasoning, Text
from anyformer.serving.worker import Delta

router = APIRouter()


class TextPart(fields.Strict):
    """A part of a message."""

    type: Literal["text"]
    text: str


Content = str | Annotated[list[TextPart], Field(fail_fast=True)]


class CalledFunction(fields.Strict):
    """A function and its arguments."""

    name: str
    arguments: str
    """JSON."""
    parsed_arguments: Any = None
    """Changes nothing: openai's client repeats the arguments in it."""


class ToolCall(fields.Strict):
    """A call that the model made."""

    id: str
    type: Literal["function"]
    function: CalledFunction
    index: int | None = None
    """Changes nothing: it numbers the calls of a streamed answer."""


class _Message(fields.Strict):
    name: fields.Unused[str] = None


class PlainMessage(_Message):
    """A message of the system or the user."""

    role: Literal["system", "developer", "user"]
    content: Content


class AssistantMessage(_Message):
    """A message of the model."""

    role: Literal["assistant"]
    content: Content | None = None
    tool_calls: Annotated[list[ToolCall], Field(fail_fast=True)] | None = None
    reasoning_content: str | None = None
    """The model's thoughts before the message, as an answer of this server has them."""
    refusal: None = None
    annotations: Annotated[list[Any], Field(max_length=0)] | None = None
    audio: None = None
    function_call: None = None
    parsed: Any = None
    """Changes nothing: openai's client repeats the content in it."""


class ToolMessage(_Message):
    """The result of a call."""

    role: Literal["tool"]
    content: Content
    tool_call_id: str


ChatMessage = Annotated[PlainMessage | AssistantMessage | ToolMessage, Field(discriminator="role")]


def _rendered(messages: Sequence[PlainMessage | AssistantMessage | ToolMessage]) -> list[dict[str, Any]]:
    """The messages as chat templates read them.

    Raises:
        ApiError: a result without its call, or arguments that are no JSON object.
    """
    shown, names = list[dict[str, Any]](), dict[str, str]()
    for number, message in enumerate(messages):
        text = fields.joined(message.content)
        if isinstance(message, ToolMessage):
            shown.append(tool_message(names, message.tool_call_id, text, f"messages.{number}.tool_call_id"))
        elif isinstance(message, AssistantMessage):
            calls = [Call(each.id, each.function.name, each.function.arguments) for each in message.tool_calls or ()]
            names |= {call.id: call.name for call in calls}
            param = f"messages.{number}.tool_calls"
            shown.append(assistant_message(text, calls, param, message.reasoning_content))
        else:
            shown.append({"role": "system" if message.role == "developer" else message.role, "content": text})
    return shown


class Tool(fields.Strict):
    """A tool."""

    type: Literal["function"]
    function: fields.FunctionBody


class ChosenFunction(fields.Strict):
    """The name of a function."""

    name: fields.ToolName


class ChosenTool(fields.Strict):
    """A tool that has to be called."""

    type: Literal["function"]
    function: ChosenFunction


class ChatRequest(fields.SamplingBody):
    """A conversation that the model answers."""

    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=fields.MOST_MESSAGES, fail_fast=True)]
    max_tokens: fields.Count | None = None
    max_completion_tokens: fields.Count | None = None
    """None: as many as there is room for."""
    logprobs: bool | None = False
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    tools: Annotated[list[Tool], Field(max_length=fields.MOST_TOOLS)] | None = None
    tool_choice: fields.Choice | ChosenTool | None = None
    parallel_tool_calls: bool | None = None
    verbosity: Literal["medium"] | None = None
    reasoning_effort: Literal["none"] | None = None
    continue_final_message: Literal[False] | None = None
    add_generation_prompt: Literal[True] | None = None
    chat_template_kwargs: Annotated[dict[str, Any], Field(max_length=0)] | None = None
    store: Literal[False] | None = None
    modalities: Annotated[list[Literal["text"]], Field(max_length=1)] | None = None
    prefix_ids: fields.PrefixIds | None = None
    """Token ids that the answer begins with: it is written from behind them."""

    def turn(self, served: ServedModel) -> Turn:
        """The turn that the request asks for. Raises ApiError for messages or tools that don't fit together."""
        if self.top_logprobs and not self.logprobs:
            raise ApiError(400, "top_logprobs are shown with logprobs: true only.", "top_logprobs")
        choice = self.tool_choice or "auto"
        named = isinstance(choice, ChosenTool)
        return Turn(
            served=served,
            messages=_rendered(self.messages),
            functions=[tool.function.made() for tool in self.tools or ()],
            choice="required" if named else choice,
            only=choice.function.name if named else None,
            parallel=self.parallel_tool_calls is not False,
            rules=self.rules(),
            rules_param=self.rules_param,
            prefix_ids=self.prefix_ids,
        )


@router.post("/v1/chat/completions", response_model=None, responses=STREAMED)
async def chat_completions(body: ChatRequest, request: Request, server: ServerOf) -> Response:
    """Answer a conversation, as OpenAI's `/v1/chat/completions`."""
    served = server.find(body.model)
    served.require_generative()
    server.limit(body.n or 1, "n")
    writer = _Writer(body, body.turn(served))
    await writer.begin()
    running = partial(server.running, served=served, streams=writer.turn.streams)
    if body.stream:
        return EventStream(writer.events(), running)
    async with running(request.receive):
        return JsonAnswer(await writer.answer())


class _Writer:
    def __init__(self, body: ChatRequest, turn: Turn) -> None:
        self.body, self.turn = body, turn
        self.id, self.created = f"chatcmpl-{secrets.token_hex(12)}", int(time.time())

    async def begin(self) -> None:
        body = self.body
        most = body.max_completion_tokens or body.max_tokens
        await self.turn.begin(body.options(), body.n or 1, most, (body.top_logprobs or 0) if body.logprobs else None)

    async def answer(self) -> dict[str, Any]:
        deltas = await self.turn.whole()
        choices = [
            {
                "index": number,
                "message": _message(answer),
                "logprobs": self._logprobs(number, delta),
                "finish_reason": answer.finish,
            }
            for number, (answer, delta) in enumerate(zip(self.turn.answers, deltas, strict=True))
        ]
        return {**self._head("chat.completion"), "choices": choices, "usage": self._usage()}

    async def events(self) -> AsyncIterator[bytes]:
        head, wants_usage = self._head("chat.completion.chunk"), False
        if self.body.stream_options is not None and (wants_usage := self.body.stream_options.include_usage):
            head["usage"] = None
        write = Chunks(head)

        def chunk(number: int, delta: dict[str, Any], logprobs: Any = None, finish: str | None = None) -> bytes:
            return write(choices=[{"index": number, "delta": delta, "logprobs": logprobs, "finish_reason": finish}])

        for number in range(len(self.turn.streams)):
            yield chunk(number, {"role": "assistant", "content": ""})
        async for number, delta, steps in self.turn.steps():
            logprobs = self._logprobs(number, delta)
            for part in [step.part for step in steps] or ([Text("")] if logprobs else []):
                yield chunk(number, _delta(part), logprobs)
                logprobs = None
            if delta.finish is not None:
                yield chunk(number, {}, None, self.turn.answers[number].finish)
        if wants_usage:
            head.pop("usage")
            yield Chunks(head)(choices=[], usage=self._usage())
        yield DONE

    def _usage(self) -> dict[str, Any]:
        return usage(len(self.turn.ids), self.turn.streams, self.body.n or 1)

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.body.model}

    def _logprobs(self, number: int, delta: Delta) -> dict[str, Any] | None:
        scores = shown_logprobs(self.turn.streams[number], delta)
        text = self.turn.served.token_text
        assert text is not None
        return {"content": [spelled(text, score) for score in scores]} if self.body.logprobs and scores else None


def _message(answer: Answer) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": answer.text, "refusal": None}
    if answer.reasoning:
        message["reasoning_content"] = answer.reasoning
    if answer.calls:
        message |= {"content": answer.text or None, "tool_calls": [_call(call) for call in answer.calls]}
    return message


def _call(call: Call) -> dict[str, Any]:
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}


def _delta(part: Part) -> dict[str, Any]:
    if isinstance(part, Text):
        return {"content": part.text}
    if isinstance(part, Reasoning):
        return {"reasoning_content": part.text}
    call = _call(Call(part.id, part.name)) if isinstance(part, CallBegin) else {"function": {"arguments": part.text}}
    return {"tool_calls": [{"index": part.index, **call}]}
