"""A thread that runs a model: texts grow in one batch, and other work is done between two of its steps."""

import asyncio
import logging
import queue
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Generic, TypeVar

from anyformer.errors import UserError
from anyformer.generation.batching import BatchingEngine
from anyformer.generation.inference import DamagedError, evaluating
from anyformer.generation.request import Finish, Request, TokenLogprob
from anyformer.model import Transformer
from anyformer.serving.errors import ApiError, crashed, request_id

T = TypeVar("T")
Item = TypeVar("Item")
Answer = TypeVar("Answer")
log = logging.getLogger("anyformer.serving")

RETRY_AFTER = "1"
"""Seconds after which a client that found the queue full may ask again."""
EVENTS_PER_SECOND = 1000
"""Events of all texts together: where more tokens come, several share one, as with vLLM's `--stream-interval`. To write
an event takes a core that the next step waits for."""


@dataclass(frozen=True, slots=True)
class Delta:
    """A piece of a text, and what is known of the tokens since the last one."""

    text: str
    tokens: Sequence[int]
    logprobs: Sequence[TokenLogprob]
    finish: Finish | None


@dataclass(eq=False)
class Stream:
    """A text on its way to a client."""

    request: Request
    waiting: asyncio.Future[None] | None = None
    """Done as soon as there may be more of the text."""
    _taken: tuple[int, int, int] = (0, 0, 0)
    """Characters, tokens and log-probabilities of the pieces so far."""

    @property
    def is_urgent(self) -> bool:
        """Whether its latest token is the first or the last, which no client should wait for."""
        return len(self.request.tokens) == 1 or self.request.finished

    def wake(self) -> None:
        """Let whoever waits for the text look at it."""
        if self.waiting is not None and not self.waiting.done():
            self.waiting.set_result(None)

    def take(self) -> Delta | None:
        """The piece that has become certain; the last one says why the text is over. None: nothing is new.

        Raises:
            ApiError: the text failed in the server.
        """
        request, (text, tokens, logprobs) = self.request, self._taken
        finish = request.finish_reason  # read first: nothing comes after it
        if finish == "error":
            if isinstance(request.error, UserError) and not isinstance(request.error, DamagedError):
                raise ApiError(400, str(request.error))  # its grammar can't be followed
            log.error("the request %s failed", request_id.get(), exc_info=request.error)
            raise crashed()
        now, count, known = request.text, len(request.tokens), len(request.logprobs)
        if finish is None and len(now) == text and known == logprobs:
            return None
        self._taken = len(now), count, known
        return Delta(now[text:], request.tokens[tokens:count], request.logprobs[logprobs:known], finish)

    async def whole(self) -> Delta:
        """The text, when it is over."""
        async for _ in merged([self]):
            pass
        request = self.request
        return Delta(request.text, request.tokens, request.logprobs, request.finish_reason)


async def merged(streams: Sequence[Stream]) -> AsyncIterator[tuple[int, Delta]]:
    """The pieces of several texts, as soon as they are certain, each with the number of its text.

    Raises:
        ApiError: a text failed in the server.
    """
    running = dict(enumerate(streams))
    while running:
        deltas = {number: delta for number, stream in running.items() if (delta := stream.take()) is not None}
        for number, delta in deltas.items():
            if delta.finish is not None:
                del running[number]
            yield number, delta
        if not deltas:
            waiting = asyncio.get_running_loop().create_future()
            for stream in running.values():
                stream.waiting = waiting
            await waiting


class Worker:
    """Runs a model in a thread of its own, for any number of clients of one event loop.

    Args:
        engine: Of a model that generates text.
        most_waiting: Texts that may wait for a slot.
    """

    def __init__(self, model: Transformer, engine: BatchingEngine | None, most_waiting: int) -> None:
        self.engine, self._model, self._most_waiting = engine, model, most_waiting
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._streams: set[Stream] = set()
        self._preparing = 0
        """Texts whose prompts are prepared, before they wait in the engine."""
        self._notified = 0.0
        """Seconds, as by `time.monotonic`, when the streams were woken last."""
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._run, name="anyformer-worker", daemon=True)

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Begin, for the clients of an event loop."""
        self._loop = loop
        self._thread.start()

    def stop(self) -> None:
        """End after the step that is being taken."""
        self._jobs.put(None)
        self._thread.join()

    @property
    def streams(self) -> int:
        """Texts on their way."""
        return len(self._streams)

    async def submit(self, prepare: Callable[[], list[Request]], texts: int, quick: bool) -> list[Stream]:
        """Add so many texts to the engine. `prepare` does it, unless it is `quick` in another thread.

        Raises:
            ApiError: too many texts wait already.
            UserError: as `prepare`.
        """
        assert self.engine is not None
        known = self._preparing + sum(not stream.request.finished for stream in self._streams)
        if known + texts > self.engine.slots + self._most_waiting:
            raise ApiError(
                429, "The server is busy: too many texts wait already.", headers={"Retry-After": RETRY_AFTER}
            )
        self._preparing += texts
        submitting = asyncio.ensure_future(self._admit(prepare, texts, quick))
        try:
            return await asyncio.shield(submitting)
        except asyncio.CancelledError:  # the client left while its prompt was prepared
            submitting.add_done_callback(self._abandon)
            raise

    async def _admit(self, prepare: Callable[[], list[Request]], texts: int, quick: bool) -> list[Stream]:
        """Prepare texts; at every moment, each counts once."""
        try:
            requests = prepare() if quick else await asyncio.to_thread(prepare)
        finally:
            self._preparing -= texts
        streams = [Stream(request) for request in requests]
        self._streams.update(streams)
        self._jobs.put(lambda: None)  # wakes the thread
        return streams

    def _abandon(self, submitting: asyncio.Future[list[Stream]]) -> None:
        if not submitting.cancelled() and submitting.exception() is None:
            self.release(submitting.result())

    def release(self, streams: Sequence[Stream]) -> None:
        """Forget texts; those that are not over are cancelled before the next step, and their slots are free."""
        for stream in streams:
            self._streams.discard(stream)
            if not stream.request.finished and self.engine is not None:
                self._jobs.put(lambda engine=self.engine, request=stream.request: engine.cancel(request))

    async def call(self, function: Callable[[], T]) -> T:
        """Do other work with the model, between two steps, and return its result or raise its exception."""
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self.put(partial(_settle, future, function))
        return await future

    def put(self, job: Callable[[], None]) -> None:
        """Have a job done that raises nothing, between two steps."""
        self._jobs.put(job)

    def _run(self) -> None:
        busy = False
        with evaluating(self._model):
            while True:
                with suppress(queue.Empty):
                    while (job := self._jobs.get(block=not busy)) is not None:
                        job()
                        busy = True  # it may have brought a text
                    return
                busy = self._step()

    def _step(self) -> bool:
        if self.engine is None:
            return False
        try:
            busy = self.engine.step()
        except Exception:  # of texts, which say it to their clients, and to the log
            busy = bool(self.engine.running or self.engine.waiting)
        if self._loop is not None and self._is_due(self.engine.waiting):
            self._notified = time.monotonic()
            self._loop.call_soon_threadsafe(self._notify)
        return busy

    def _is_due(self, waiting: int) -> bool:
        """Whether the streams are woken; while prompts wait always, since the steps that read them are long."""
        streams = tuple(self._streams)
        interval = len(streams) / EVENTS_PER_SECOND
        is_late = waiting > 0 or time.monotonic() - self._notified >= interval
        return bool(streams) and (is_late or any(stream.is_urgent for stream in streams))

    def _notify(self) -> None:
        for stream in self._streams:
            stream.wake()


class BatchedCalls(Generic[Item, Answer]):
    """Gathers the items of requests that wait at the same time, and answers them together.

    Args:
        function: Answers items, one answer for each. Raises UserError for a bad one: its request alone fails.
    """

    def __init__(self, worker: Worker, function: Callable[[Sequence[Item]], Sequence[Answer]]) -> None:
        self._worker, self._function = worker, function
        self._waiting: list[tuple[Sequence[Item], asyncio.Future[Sequence[Answer]]]] = []

    async def __call__(self, items: Sequence[Item]) -> Sequence[Answer]:
        """The answers to items. Raises UserError as the function."""
        future: asyncio.Future[Sequence[Answer]] = asyncio.get_running_loop().create_future()
        self._waiting.append((items, future))
        if len(self._waiting) == 1:
            self._worker.put(self._answer_all)  # whoever asked first may leave: the others are answered all the same
        return await future

    def _answer_all(self) -> None:
        waiting, self._waiting = self._waiting, []
        waiting = [(items, future) for items, future in waiting if not future.cancelled()]
        try:
            answers = iter(self._function([item for items, _ in waiting for item in items]))
        except Exception:  # of one request, perhaps, so each is answered alone
            for items, future in waiting:
                _settle(future, partial(self._function, items))
        else:
            for items, future in waiting:
                _settle(future, [*islice(answers, len(items))].copy)


def _settle(future: asyncio.Future[T], function: Callable[[], T]) -> None:
    """Hand the result of a function, or its exception, to the client that waits for it, unless that has left."""
    if future.cancelled():
        return
    try:
        settle = partial(future.set_result, function())
    except BaseException as error:
        settle = partial(future.set_exception, error)
    future.get_loop().call_soon_threadsafe(lambda: None if future.done() else settle())
