"""`/v1/completions`: texts that are continued, and the log-probabilities of prompts."""

import secrets
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial
from itertools import accumulate
from typing import Annotated, Any, Literal

import torch
from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import Field

from anyformer.generation.cached_decoder import DecoderStep
from anyformer.generation.config import GenerationConfig, GenerationOptions
from anyformer.generation.inference import check_nan, evaluating
from anyformer.generation.request import TokenLogprob, token_logprobs
from anyformer.model import Transformer
from anyformer.serving.answers import (
    DONE,
    FINISH,
    STREAMED,
    Chunks,
    EventStream,
    JsonAnswer,
    shown_logprobs,
    spelled,
    usage,
)
from anyformer.serving.api.fields import PrefixIds, SamplingBody
from anyformer.serving.errors import ApiError
from anyformer.serving.served_model import ServedModel
from anyformer.serving.state import Server, ServerOf
from anyformer.serving.worker import Delta, Stream, merged

router = APIRouter()

_CHUNK = 256
"""Tokens of a prompt that are scored at a time."""

Ids = Annotated[list[int], Field(min_length=1, fail_fast=True)]


class CompletionRequest(SamplingBody):
    """A prompt that is continued; of an encoder-decoder a source that is rewritten."""

    prompt: (
        str
        | Annotated[list[str], Field(min_length=1, fail_fast=True)]
        | Ids
        | Annotated[list[Ids], Field(min_length=1, fail_fast=True)]
    )
    """A text, token ids, or several of one kind."""
    max_tokens: Annotated[int, Field(ge=0)] | None = 16
    """0: nothing is generated, which takes `echo`."""
    best_of: Annotated[int, Field(ge=1)] | None = None
    """1, or as many as `n`: none is left out."""
    suffix: Literal[""] | None = None
    echo: bool | None = False
    """Begin with the prompt; with `logprobs`, its tokens are scored as well."""
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    """Log-probabilities of so many of the likeliest tokens in each place."""
    prefix_ids: PrefixIds | None = None
    """Token ids that each text begins with: it is written from behind them."""

    def prompts(self) -> list[str | list[int]]:
        """The prompts one by one."""
        prompt: Any = self.prompt
        if isinstance(prompt, str) or isinstance(prompt[0], int):
            return [prompt]
        return list(prompt)


@router.post("/v1/completions", response_model=None, responses=STREAMED)
async def completions(body: CompletionRequest, request: Request, server: ServerOf) -> Response:
    """Continue prompts, as OpenAI's `/v1/completions`."""
    served = server.find(body.model)
    served.require_generative()
    writer = _Writer(served, body, server)
    await writer.begin(request)
    running = partial(server.running, served=served, streams=writer.streams)
    if body.stream:
        return EventStream(writer.events(), running)
    async with running(request.receive):
        return JsonAnswer(await writer.answer())


class _Writer:
    def __init__(self, served: ServedModel, body: CompletionRequest, server: Server) -> None:
        self.served, self.body, self.server = served, body, server
        self.streams: list[Stream] = []
        self._lengths = defaultdict[int, int](int)
        """Characters so far, by text."""
        self.head: dict[str, Any] = {
            "id": f"cmpl-{secrets.token_hex(12)}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": body.model,
        }

    async def begin(self, request: Request) -> None:
        body, served = self.body, self.served
        prompts, count = body.prompts(), body.n or 1
        self.server.limit(len(prompts) * count, "n")
        if body.best_of not in (None, 1, count):
            _refuse("best_of", "All texts are answered: leave out best_of, or set it to n.")
        self.prompts = [await served.encode_in_thread(prompt) for prompt in prompts]
        self.generates = body.max_tokens != 0
        if not self.generates and not body.echo:
            _refuse("max_tokens", "max_tokens 0 asks for nothing: set echo, or ask for at least one token.")
        if body.echo and served.model.config.is_encoder_decoder:
            _refuse("echo", "An encoder-decoder's text does not go on from its prompt: leave out echo.")
        rules = body.rules()
        if rules is not None and body.prefix_ids is not None:
            _refuse("prefix_ids", "A grammar begins with the text: leave out one of the two.")
        if body.prefix_ids is not None:
            if body.echo:
                _refuse("prefix_ids", "echo shows the prompt alone before the text: leave out echo or prefix_ids.")
            self.prompts = [served.with_prefix(ids, body.prefix_ids) for ids in self.prompts]
        rooms = [served.room(ids[: len(ids) - (not self.generates)], "prompt") for ids in self.prompts]
        self.scores: list[list[TokenLogprob | None]] = [[] for _ in prompts]
        if body.echo and (top := body.logprobs) is not None:
            async with self.server.running(request.receive, served):
                for number, ids in enumerate(self.prompts):
                    score = partial(_prompt_logprobs, served.model, ids, top)
                    self.scores[number] = await served.call(score)
        if not self.generates:
            return
        for ids, room in zip(self.prompts, rooms, strict=True):
            new = room if body.max_tokens is None else min(body.max_tokens, room)
            options: GenerationOptions = {"temperature": 1.0, **body.options(), "max_new_tokens": new}
            config = GenerationConfig().replace(**options)
            try:
                constrain = None if rules is None else await served.compile(lambda: rules, ids, body.rules_param)
                self.streams += await served.submit(ids, config, count, logprobs=body.logprobs, constrain=constrain)
            except BaseException:
                served.worker.release(self.streams)
                raise

    async def answer(self) -> dict[str, Any]:
        choices = list[dict[str, Any]]()
        for number in range(len(self.streams) or len(self.prompts)):
            delta = await self.streams[number].whole() if self.streams else Delta("", (), (), "length")
            choices.append(self._choice(number, delta, first=True))
        return {**self.head, "choices": choices, "usage": self._usage()}

    async def events(self) -> AsyncIterator[bytes]:
        begun, chunk = set[int](), Chunks(self.head)
        async for number, delta in merged(self.streams) if self.streams else self._echoes():
            yield chunk(choices=[self._choice(number, delta, first=number not in begun)])
            begun.add(number)
        if self.body.stream_options is not None and self.body.stream_options.include_usage:
            yield chunk(choices=[], usage=self._usage())
        yield DONE

    async def _echoes(self) -> AsyncIterator[tuple[int, Delta]]:
        for number in range(len(self.prompts)):
            yield number, Delta("", (), (), "length")

    def _choice(self, number: int, delta: Delta, first: bool) -> dict[str, Any]:
        prompt = number // (self.body.n or 1)
        # An end-of-text that was chosen is scored, as by OpenAI: lm-eval takes the last score for the new token's.
        text, scored = delta.text, list[TokenLogprob | None](delta.logprobs)
        if self.body.echo and first:
            source, tokenizer = self.body.prompts()[prompt], self.served.tokenizer
            if not isinstance(source, str):
                source = "" if tokenizer is None else tokenizer.decode(self.prompts[prompt], skip_special=False)
            text = source + text
            scored = [*self.scores[prompt], *scored]
        logprobs = None
        if self.body.logprobs is not None:
            logprobs = self._logprobs(number, scored, self.prompts[prompt])
            if (spelling := self.served.token_text) is not None:
                shown = shown_logprobs(self.streams[number], delta) if self.streams else ()
                logprobs["content"] = [spelled(spelling, score) for score in shown]
        finish = None if delta.finish is None else FINISH[delta.finish]
        return {"index": number, "text": text, "logprobs": logprobs, "finish_reason": finish}

    def _logprobs(self, number: int, scored: Sequence[TokenLogprob | None], prompt: Sequence[int]) -> dict[str, Any]:
        spell = self._spell
        tokens = [prompt[0] if score is None else score.token for score in scored]
        lengths = [0] * len(tokens) if self.served.token_text is None else map(self.served.token_text.length, tokens)
        *offsets, self._lengths[number] = accumulate(lengths, initial=self._lengths[number])
        return {
            "tokens": [spell(token) for token in tokens],
            "token_logprobs": [None if score is None else score.logprob for score in scored],
            "top_logprobs": [None if score is None else _likeliest(score, spell) for score in scored],
            "text_offset": offsets,
        }

    def _spell(self, token: int) -> str:
        return str(token) if self.served.token_text is None else self.served.token_text.text(token)

    def _usage(self) -> dict[str, Any]:
        return usage(sum(map(len, self.prompts)), self.streams, self.body.n or 1)


def _prompt_logprobs(model: Transformer, ids: Sequence[int], top: int) -> list[TokenLogprob | None]:
    """The log-probability of each token given those before it, with the likeliest tokens in its place; None for the
    first, which nothing predicts."""
    step, cache = DecoderStep(model), model.make_cache(1, len(ids))
    tokens = torch.tensor([list(ids)], device=model.device)
    found: list[TokenLogprob | None] = [None]
    with evaluating(model), torch.inference_mode():
        for start in range(0, len(ids), _CHUNK):
            logits = check_nan(step(tokens[:, start : start + _CHUNK], cache)[0])
            targets = tokens[0, start + 1 : start + 1 + len(logits)]
            found += token_logprobs(logits[: len(targets)], targets, top)
    return found


def _likeliest(score: TokenLogprob, spell: Callable[[int], str]) -> dict[str, float]:
    """The likeliest tokens by their text; of those with the same text the likeliest."""
    top: dict[str, float] = {}
    for token, logprob in score.top.items():
        top.setdefault(spell(token), logprob)
    return top


def _refuse(param: str, message: str) -> None:
    raise ApiError(400, message, param)
