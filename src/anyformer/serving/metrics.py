"""Metrics of a server, in Prometheus's format."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from anyformer.serving.worker import Stream

if TYPE_CHECKING:
    from anyformer.serving.served_model import ServedModel

_SECONDS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300)


class Metrics:
    """Counts and durations of requests, by model."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        self._requests = Counter("anyformer_requests", "Answered requests.", ["path", "status"], registry=registry)
        self._prompt = Counter("anyformer_prompt_tokens", "Tokens of prompts.", ["model"], registry=registry)
        self._generated = Counter("anyformer_generated_tokens", "New tokens.", ["model"], registry=registry)
        self._guessed = Counter(
            "anyformer_guessed_tokens", "Tokens that a draft guessed.", ["model"], registry=registry
        )
        self._accepted = Counter(
            "anyformer_accepted_tokens", "Guesses that the model chose.", ["model"], registry=registry
        )
        self._texts = Counter(
            "anyformer_texts", "Texts by the reason of their end.", ["model", "reason"], registry=registry
        )
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
        if streams:
            prompt = streams[0].request.prompt
            self._prompt.labels(model).inc((prompt.ids if prompt.source is None else prompt.source).shape[1])
        for stream in streams:
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
