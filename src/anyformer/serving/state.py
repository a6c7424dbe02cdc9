"""The models of a server, its metrics, and what its endpoints share."""

import asyncio
import time
from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated

from fastapi import Depends, Request
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.types import Receive

from anyformer.errors import nearest, quote
from anyformer.serving.errors import ApiError
from anyformer.serving.served_model import ServedModel
from anyformer.serving.settings import ServerSettings
from anyformer.serving.worker import Stream

_SECONDS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300)


class Metrics:
    """Counts and durations of requests, by model."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        counter = partial(Counter, registry=registry)
        self._requests = counter("anyformer_requests", "Answered requests.", ["path", "status"])
        self._prompt = counter("anyformer_prompt_tokens", "Tokens of the prompts of all texts.", ["model"])
        self._cached = counter("anyformer_cached_prompt_tokens", "Those of them that an earlier text had.", ["model"])
        self._generated = counter("anyformer_generated_tokens", "New tokens.", ["model"])
        self._guessed = counter("anyformer_guessed_tokens", "Tokens that a draft guessed.", ["model"])
        self._accepted = counter("anyformer_accepted_tokens", "Guesses that the model chose.", ["model"])
        self._texts = counter("anyformer_texts", "Texts by the reason of their end.", ["model", "reason"])
        self._duration = Histogram(
            "anyformer_request_seconds", "Time of requests for text.", ["model"], buckets=_SECONDS, registry=registry
        )
        self._running = Gauge("anyformer_texts_running", "Texts of the running batch.", ["model"], registry=registry)
        self._waiting = Gauge("anyformer_texts_waiting", "Texts without a token.", ["model"], registry=registry)

    def answered(self, path: str, status: int) -> None:
        """Count an answer."""
        self._requests.labels(path, str(status)).inc()

    def finished(self, model: str, streams: Sequence[Stream], seconds: float) -> None:
        """Count a request for text."""
        self._duration.labels(model).observe(seconds)
        for stream in streams:
            prompt = stream.request.prompt
            self._prompt.labels(model).inc((prompt.ids if prompt.source is None else prompt.source).shape[1])
            self._cached.labels(model).inc(stream.request.cached_tokens)
            self._generated.labels(model).inc(len(stream.request.tokens))
            self._guessed.labels(model).inc(stream.request.guessed)
            self._accepted.labels(model).inc(stream.request.accepted)
            self._texts.labels(model, stream.request.finish_reason or "cancelled").inc()

    def render(self, models: Iterable[ServedModel]) -> bytes:
        """All of them, as text."""
        for served in models:
            engine = served.worker.engine
            if engine is not None and served.adapter is None:
                self._running.labels(served.name).set(engine.running)
                self._waiting.labels(served.name).set(engine.waiting)
        return generate_latest(self._registry)


class ClientLeftError(Exception):
    """Nobody waits for the answer any more."""


@dataclass(eq=False)
class Server:
    """The models of a server by name, in the order in which they were given."""

    settings: ServerSettings
    models: Mapping[str, ServedModel]
    metrics: Metrics = field(default_factory=Metrics)

    def find(self, name: str) -> ServedModel:
        """A model. Raises ApiError for a name that there is not."""
        served = self.models.get(name)
        if served is None:
            message = f"There is no model {quote(name)} here: {nearest(name[:200], self.models)}"
            raise ApiError(404, message, "model", "model_not_found")
        return served

    def limit(self, count: int, param: str) -> None:
        """Raise ApiError for more texts in one request than the server takes."""
        if count > self.settings.max_n:
            most = self.settings.max_n
            raise ApiError(400, f"{param} makes {count:,} texts of this request, and {most} are allowed.", param)

    @asynccontextmanager
    async def running(
        self, receive: Receive, served: ServedModel, streams: Sequence[Stream] = ()
    ) -> AsyncGenerator[None]:
        """Texts, or other work, while the client waits: whatever happens, their slots are free afterwards.

        Raises:
            ApiError: They take longer than the server's timeout.
            ClientLeftError: The client left.
        """
        began, task, left = time.perf_counter(), asyncio.current_task(), False
        assert task is not None

        async def watch() -> None:
            nonlocal left
            while (await receive())["type"] != "http.disconnect":
                pass
            left = True
            task.cancel()

        watcher = asyncio.create_task(watch())
        try:
            async with asyncio.timeout(self.settings.timeout or None):
                yield
        except TimeoutError:
            raise ApiError(504, f"The request took longer than {self.settings.timeout:g} seconds.") from None
        except asyncio.CancelledError:
            if not left:
                raise
            task.uncancel()
            raise ClientLeftError from None
        finally:
            watcher.cancel()
            with suppress(asyncio.CancelledError):
                await watcher
            served.worker.release(streams)
            self.metrics.finished(served.name, streams, time.perf_counter() - began)


async def _server_of(request: Request) -> Server:  # FastAPI takes a thread for others
    return request.app.state.server


ServerOf = Annotated[Server, Depends(_server_of)]
"""The server that a request is for."""
