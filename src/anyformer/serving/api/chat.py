"""`/v1/chat/completions`: conversations in the words of the model's own chat template."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, ConfigDict, Field
from starlette.types import Receive

from anyformer.serving.api.choices import FINISH, merged, shown_logprobs, spelled, usage
from anyformer.serving.api.fields import Count, PrefixIds, SamplingBody
from anyformer.serving.api.sse import DONE, EventStream, event
from anyformer.serving.served_model import ServedModel
from anyformer.serving.state import Server, server_of
from anyformer.serving.worker import Delta

router = APIRouter()


class TextPart(BaseModel):
    """A part of a message."""

    model_config = ConfigDict(extra="forbid")

    type: Literal["text"]
    text: str


class ChatMessage(BaseModel):
    """A message of a conversation."""

    model_config = ConfigDict(extra="forbid")

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart]
    name: str | None = None
    """Changes nothing."""

    def rendered(self) -> dict[str, str]:
        """The message as chat templates know it."""
        content = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return {"role": "system" if self.role == "developer" else self.role, "content": content}


class ChatRequest(SamplingBody):
    """A conversation that the model answers."""

    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    max_tokens: Count | None = None
    max_completion_tokens: Count | None = None
    """None: as many as there is room for."""
    logprobs: bool | None = False
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    store: Literal[False] | None = None
    response_format: ResponseFormat | None = None
    prefix_ids: PrefixIds | None = None
    """Token ids that the answer begins with: it is written from behind them."""


class ResponseFormat(BaseModel):
    """The form of an answer."""

    model_config = ConfigDict(extra="forbid")

    type: Literal["text"] = "text"


ChatRequest.model_rebuild()


@router.post("/v1/chat/completions", response_model=None)
async def chat_completions(
    body: ChatRequest, request: Request, server: Annotated[Server, Depends(server_of)]
) -> Response:
    """Answer a conversation, as OpenAI's `/v1/chat/completions`."""
    served = server.find(body.model)
    served.require_generative()
    writer = _Writer(served, body, server)
    await writer.begin()
    if body.stream:
        return EventStream(writer.events(), writer.running)
    async with writer.running(request.receive):
        return JSONResponse(await writer.answer())


class _Writer:
    """Writes the answer to a request."""

    def __init__(self, served: ServedModel, body: ChatRequest, server: Server) -> None:
        self.served, self.body, self.server = served, body, server
        self.id, self.created = f"chatcmpl-{secrets.token_hex(12)}", int(time.time())

    def running(self, receive: Receive) -> AbstractAsyncContextManager[None]:
        """The texts while the client waits."""
        return self.server.running(receive, self.served, self.streams)

    async def begin(self) -> None:
        """Check everything, and submit the texts."""
        body, served, count = self.body, self.served, self.body.n or 1
        self.server.limit(count, "n")
        self.ids = await served.encode_chat([message.rendered() for message in body.messages])
        self.ids = served.with_prefix(self.ids, body.prefix_ids)
        most = body.max_completion_tokens or body.max_tokens
        self.streams = await served.submit_chat(
            self.ids, body.options(), count, most, (body.top_logprobs or 0) if body.logprobs else None
        )

    async def answer(self) -> dict[str, Any]:
        """The answer as a whole."""
        choices = list[dict[str, Any]]()
        for number, stream in enumerate(self.streams):
            delta = await stream.whole()
            message = {"role": "assistant", "content": delta.text, "refusal": None}
            choices.append(
                {
                    "index": number,
                    "message": message,
                    "logprobs": self._logprobs(number, delta),
                    "finish_reason": FINISH[delta.finish or "stop"],
                }
            )
        head = self._head("chat.completion")
        return {**head, "choices": choices, "usage": usage(len(self.ids), self.streams)}

    async def events(self) -> AsyncIterator[bytes]:
        """The answer in pieces."""
        head, wants_usage = self._head("chat.completion.chunk"), False
        if self.body.stream_options is not None and (wants_usage := self.body.stream_options.include_usage):
            head["usage"] = None

        def chunk(number: int, delta: dict[str, Any], logprobs: Any = None, finish: str | None = None) -> bytes:
            choice = {"index": number, "delta": delta, "logprobs": logprobs, "finish_reason": finish}
            return event({**head, "choices": [choice]})

        for number in range(len(self.streams)):
            yield chunk(number, {"role": "assistant", "content": ""})
        async for number, delta in merged(self.streams):
            logprobs = self._logprobs(number, delta)
            if delta.text or logprobs:
                yield chunk(number, {"content": delta.text}, logprobs)
            if delta.finish is not None:
                yield chunk(number, {}, None, FINISH[delta.finish])
        if wants_usage:
            yield event({**head, "choices": [], "usage": usage(len(self.ids), self.streams)})
        yield DONE

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.body.model}

    def _logprobs(self, number: int, delta: Delta) -> dict[str, Any] | None:
        scores = shown_logprobs(self.streams[number], delta)
        text = self.served.token_text
        assert text is not None
        return {"content": [spelled(text, score) for score in scores]} if self.body.logprobs and scores else None
