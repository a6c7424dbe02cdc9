"""Answers: JSON, server-sent events, and what their choices say."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any

from pydantic_core import PydanticSerializationError, to_json
from starlette.responses import Response
from starlette.types import Receive, Scope, Send
from typing_extensions import override

from anyformer.generation.request import Finish, TokenLogprob
from anyformer.serving.errors import ApiError, crashed, request_id
from anyformer.serving.state import ClientLeftError
from anyformer.serving.token_text import TokenText
from anyformer.serving.worker import Delta, Stream

log = logging.getLogger("anyformer.serving")

STREAMED: dict[int | str, dict[str, Any]] = {200: {"content": {"text/event-stream": {}}}}
"""Answers of an endpoint that streams where it is asked to, in OpenAI's words."""
DONE = b"data: [DONE]\n\n"
_HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
_dumps = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


def _json(value: Any) -> bytes:
    """A value as JSON. Half of a surrogate pair, which a model or a client can write into JSON, becomes a question
    mark."""
    try:
        return to_json(value)
    except PydanticSerializationError:
        return _dumps(value).encode("utf-8", "replace")


class JsonAnswer(Response):
    """A response with JSON."""

    media_type = "application/json"

    @override
    def render(self, content: Any) -> bytes:
        return _json(content)


def event(value: Any, name: str | None = None) -> bytes:
    """One event with JSON."""
    head = f"event: {name}\n".encode() if name else b""
    return b"%bdata: %b\n\n" % (head, _json(value))


class Chunks:
    """Events that begin with the same fields.

    Args:
        head: These fields, which are written as JSON once.
    """

    def __init__(self, head: Mapping[str, Any]) -> None:
        self._head = _json(dict(head))[:-1]

    def __call__(self, **fields: Any) -> bytes:
        """The event with these fields behind the first."""
        return b"data: %b,%b\n\n" % (self._head, _json(fields)[1:])


class EventStream(Response):
    """A response that sends events as they come. An error after the first is an event, and the end.

    Args:
        events: They are sent while `running` is entered, in one task.
        running: Gets the channel on which the client's leaving is heard.
        failed: The event of an error.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        events: AsyncIterator[bytes],
        running: Callable[[Receive], AbstractAsyncContextManager[None]],
        failed: Callable[[ApiError], bytes] = lambda error: event(error.body),
    ) -> None:
        super().__init__(headers=_HEADERS)
        del self.headers["content-length"]
        self._events, self._running, self._failed = events, running, failed

    @override
    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def write(body: bytes, more: bool = True) -> None:
            await send({"type": "http.response.body", "body": body, "more_body": more})

        async def write_events() -> None:
            async for each in self._events:
                await write(each)

        try:
            async with self._running(receive):
                await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
                # In this task each event would wake all coroutines that are around the endpoint.
                await asyncio.create_task(write_events())
        except ApiError as error:
            await write(self._failed(error))
        except ClientLeftError:
            return
        except Exception:
            log.exception("the request %s failed", request_id.get())
            await write(self._failed(crashed()))
        await write(b"", more=False)


FINISH: dict[Finish, str] = {"stop": "stop", "length": "length", "cancelled": "stop", "error": "stop"}
"""Reasons for the end of a text, in OpenAI's words."""


def usage(prompt_tokens: int, streams: Sequence[Stream], texts: int = 1) -> dict[str, Any]:
    """The numbers of tokens of an answer with so many texts of each prompt."""
    new = sum(len(stream.request.tokens) for stream in streams)
    cached = sum(stream.request.cached_tokens for stream in streams[::texts])
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": new,
        "total_tokens": prompt_tokens + new,
        "prompt_tokens_details": {"cached_tokens": cached},
    }


def shown_logprobs(stream: Stream, delta: Delta) -> Sequence[TokenLogprob]:
    """The tokens of a piece, without an end-of-text."""
    ended = delta.finish == "stop" and stream.request.ends_with_eos
    return delta.logprobs[:-1] if ended else delta.logprobs


def spelled(text: TokenText, score: TokenLogprob) -> dict[str, Any]:
    """A token with its id, its text and its bytes, and the likeliest ones in its place."""

    def one(token: int, logprob: float) -> dict[str, Any]:
        return {"id": token, "token": text.text(token), "logprob": logprob, "bytes": list(text.bytes(token))}

    return {**one(score.token, score.logprob), "top_logprobs": [one(*each) for each in score.top.items()]}
