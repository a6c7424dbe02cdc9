"""Work of several clients, done in one call."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
from typing import Generic, TypeVar

from anyformer.errors import UserError
from anyformer.serving.worker import Worker, unless_done

Item = TypeVar("Item")
Answer = TypeVar("Answer")


class BatchedCalls(Generic[Item, Answer]):
    """Gathers the items of requests that wait at the same time, and answers them together.

    Args:
        worker: Its thread does the work.
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
            future.get_loop().call_soon_threadsafe(unless_done, future, settle)

    def _alone(self, items: Sequence[Item]) -> Sequence[Answer] | UserError:
        try:
            return self._function(items)
        except UserError as error:
            return error
