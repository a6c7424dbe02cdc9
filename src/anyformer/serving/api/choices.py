"""Texts as the choices of an answer."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

from anyformer.generation.request import Finish, TokenLogprob
from anyformer.serving.token_text import TokenText
from anyformer.serving.worker import Delta, Stream

FINISH: dict[Finish, str] = {"stop": "stop", "length": "length", "cancelled": "stop", "error": "stop"}
"""Reasons for the end of a text, in OpenAI's words."""


def usage(prompt_tokens: int, streams: Sequence[Stream]) -> dict[str, Any]:
    """The numbers of tokens of an answer."""
    new = sum(len(stream.request.tokens) for stream in streams)
    return {"prompt_tokens": prompt_tokens, "completion_tokens": new, "total_tokens": prompt_tokens + new}


def shown_logprobs(stream: Stream, delta: Delta) -> Sequence[TokenLogprob]:
    """The tokens of a piece, without an end-of-text."""
    ended = delta.finish == "stop" and stream.request.ends_with_eos
    return delta.logprobs[:-1] if ended else delta.logprobs


def spelled(text: TokenText, score: TokenLogprob) -> dict[str, Any]:
    """A token with its id, its text and its bytes, and the likeliest ones in its place."""

    def one(token: int, logprob: float) -> dict[str, Any]:
        return {"id": token, "token": text.text(token), "logprob": logprob, "bytes": list(text.bytes(token))}

    return {**one(score.token, score.logprob), "top_logprobs": [one(*each) for each in score.top.items()]}


async def merged(streams: Sequence[Stream]) -> AsyncIterator[tuple[int, Delta]]:
    """The pieces of several texts as they come, each with the number of its text."""
    if len(streams) == 1:
        async for delta in streams[0].deltas():
            yield 0, delta
        return
    arrived: asyncio.Queue[tuple[int, Delta] | BaseException | None] = asyncio.Queue()

    async def read(number: int, stream: Stream) -> None:
        try:
            async for delta in stream.deltas():
                arrived.put_nowait((number, delta))
        except Exception as error:
            arrived.put_nowait(error)
        else:
            arrived.put_nowait(None)

    readers = [asyncio.create_task(read(number, stream)) for number, stream in enumerate(streams)]
    try:
        left = len(readers)
        while left:
            item = await arrived.get()
            if isinstance(item, BaseException):
                raise item
            if item is None:
                left -= 1
            else:
                yield item
    finally:
        for reader in readers:
            reader.cancel()
