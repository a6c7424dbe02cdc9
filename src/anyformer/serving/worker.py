"""A thread that runs a model: texts grow in one batch, and other work is done between two of its steps."""

import asyncio
import logging
import queue
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Generic, TypeVar

from anyformer.errors import UserError
from anyformer.generation.batching import BatchingEngine
from anyformer.generation.config import GenerationConfig
from anyformer.generation.inference import evaluating, generates
from anyformer.generation.request import Constraint, Finish, Request, TokenLogprob
from anyformer.generation.speculative_decoding import Draft
from anyformer.model import Transformer
from anyformer.serving.errors import ApiError, crashed
from anyformer.tokenizer import Tokenizer

T = TypeVar("T")
Item = TypeVar("Item")
Answer = TypeVar("Answer")
log = logging.getLogger("anyformer.serving")

RETRY_AFTER = "1"
"""Seconds after which a client that found the queue full may ask again."""
EVENTS_PER_SECOND = 1000
"""Events of all texts together: where more tokens come, several share one, as with vLLM's `--stream-interval`. To write
an event takes a core that the next step waits for."""
_QUICK = 2048
"""Longest prompt, in tokens, that is prepared in the event loop: that takes less than a millisecond."""


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
    _waiting: asyncio.Future[None] | None = None

    @property
    def is_urgent(self) -> bool:
        """Whether its latest token is the first or the last, which no client should wait for."""
        return len(self.request.tokens) == 1 or self.request.finished

    def wake(self) -> None:
        """Let whoever waits for the text look at it."""
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)

    async def deltas(self) -> AsyncIterator[Delta]:
        """The text in pieces, as soon as they are certain; the last one says why it is over.

        Raises:
            ApiError: the text failed in the server.
        """
        request, text, tokens, logprobs = self.request, 0, 0, 0
        while True:
            finish = request.finish_reason  # read first: nothing comes after it
            if finish == "error":
                raise crashed()
            now, count, known = request.text, len(request.tokens), len(request.logprobs)
            if finish is not None or len(now) > text or known > logprobs:
                yield Delta(now[text:], request.tokens[tokens:count], request.logprobs[logprobs:known], finish)
                text, tokens, logprobs = len(now), count, known
                if finish is not None:
                    return
            else:
                self._waiting = asyncio.get_running_loop().create_future()
                await self._waiting

    async def whole(self) -> Delta:
        """The text, when it is over."""
        deltas = [delta async for delta in self.deltas()]
        logprobs = [logprob for delta in deltas for logprob in delta.logprobs]
        return Delta(self.request.text, list(self.request.tokens), logprobs, deltas[-1].finish)


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


class Worker:
    """Runs a model in a thread of its own, for any number of clients of one event loop.

    Args:
        model, tokenizer: A model in any quantization. One that generates text gets a `BatchingEngine`.
        waiting: Texts that may wait for a slot.
    """

    def __init__(
        self,
        model: Transformer,
        tokenizer: Tokenizer | None,
        *,
        slots: int = 16,
        capacity: int | None = None,
        waiting: int = 64,
        adapters: Sequence[str] = (),
        draft: Draft | None = None,
    ) -> None:
        self.model, self.tokenizer, self._most_waiting = model, tokenizer, waiting
        self.engine = None
        if generates(model):
            self.engine = BatchingEngine(
                model, tokenizer, slots, capacity, prefixes=slots, adapters=adapters, draft=draft
            )
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

    async def submit(
        self,
        prompt: Sequence[int],
        configs: Sequence[GenerationConfig],
        logprobs: int | None = None,
        also_eos: int | None = None,
        constrain: Callable[[], Constraint] | None = None,
        skip_special: bool = True,
        adapter: str | None = None,
    ) -> list[Stream]:
        """Add a text for each config. `constrain` makes what each may be; the others are as for `BatchingEngine`.

        Raises:
            ApiError: too many texts wait already.
            UserError: as `BatchingEngine.submit`.
        """
        engine = self.engine
        assert engine is not None
        texts = self._preparing + sum(not stream.request.finished for stream in self._streams)
        if texts + len(configs) > engine.slots + self._most_waiting:
            raise ApiError(
                429, "The server is busy: too many texts wait already.", headers={"Retry-After": RETRY_AFTER}
            )

        def prepare() -> list[Request]:
            return [
                engine.submit(
                    prompt,
                    each,
                    logprobs=logprobs,
                    also_eos=also_eos,
                    constraint=None if constrain is None else constrain(),
                    skip_special=skip_special,
                    adapter=adapter,
                )
                for each in configs
            ]

        # To give so little to another thread takes longer: the two have to wait for each other, as Python runs one.
        quick = constrain is None and len(configs) == 1 and len(prompt) <= _QUICK
        self._preparing += len(configs)
        submitting = asyncio.ensure_future(self._admit(prepare, len(configs), quick))
        try:
            return await asyncio.shield(submitting)
        except asyncio.CancelledError:  # the client left while its prompt was prepared
            submitting.add_done_callback(self._abandon)
            raise

    async def _admit(self, prepare: Callable[[], list[Request]], texts: int, quick: bool) -> list[Stream]:
        """Prepare the prompts of texts, unless it is `quick` in another thread; at every moment, each counts once."""
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
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()

        def job() -> None:
            if future.cancelled():
                return
            try:
                settle = partial(future.set_result, function())
            except BaseException as error:  # handed to whoever waits for it
                settle = partial(future.set_exception, error)
            loop.call_soon_threadsafe(_unless_done, future, settle)

        self._jobs.put(job)
        return await future

    def _run(self) -> None:
        with evaluating(self.model):
            self._work()

    def _work(self) -> None:
        busy = False
        while True:
            try:
                while True:
                    job = self._jobs.get(block=not busy)
                    if job is None:
                        return
                    job()
                    busy = True  # it may have brought a text
            except queue.Empty:
                pass
            busy = self._step()

    def _step(self) -> bool:
        if self.engine is None:
            return False
        try:
            busy = self.engine.step()
        except Exception:
            log.exception("a step failed")
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
            await self._worker.call(self._answer_all)
        return await future

    def _answer_all(self) -> None:
        waiting, self._waiting = self._waiting, []
        waiting = [(items, future) for items, future in waiting if not future.cancelled()]
        try:
            answers: list[Sequence[Answer] | UserError] = []
            together = self._function([item for items, _ in waiting for item in items])
            start = 0
            for items, _ in waiting:
                answers.append(together[start : start + len(items)])
                start += len(items)
        except UserError:
            answers = [self._alone(items) for items, _ in waiting]
        for (_, future), answer in zip(waiting, answers, strict=True):
            failed = isinstance(answer, UserError)
            settle = partial(future.set_exception, answer) if failed else partial(future.set_result, answer)
            future.get_loop().call_soon_threadsafe(_unless_done, future, settle)

    def _alone(self, items: Sequence[Item]) -> Sequence[Answer] | UserError:
        try:
            return self._function(items)
        except UserError as error:
            return error


def _unless_done(future: asyncio.Future[T], settle: Callable[[], None]) -> None:
    """Settle a future, unless its client has left."""
    if not future.done():
        settle()
