"""Encoding in parallel: many texts to ids, in order, in processes of its own, with a bounded number under way.

Each worker is a plain child process that knows nothing but the tokenizers library, and each has a thread here that
hands it one chunk of texts after the other. Nothing of the calling program is imported or copied into the workers, so
they start quickly, whatever the program has loaded, and end with it, whatever ends it. What they answer does not depend
on how many there are.
"""

from __future__ import annotations

import io
import os
import pickle
import queue
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import chain, islice
from pathlib import Path
from typing import Any, Protocol, TypeVar, cast

import numpy as np
import numpy.typing as npt

from anyformer.data import encoding_worker
from anyformer.errors import UserError
from anyformer.tokenizer import Tokenizer

Ids = npt.NDArray[np.uint16 | np.uint32]
Lengths = npt.NDArray[np.uint32]
Encoded = tuple[Lengths, Ids]
"""The number of ids of each text, and the ids of all of them."""

CHUNK = 1 << 18
"""Characters that are handed to a worker at a time: a fraction of a second's work, and little memory."""

_INLINE = 4
"""Up to this number of chunks, starting processes would take longer than they save."""

_Item = TypeVar("_Item")


class BatchEncoder(Protocol):
    """What tokenizing needs of a tokenizer."""

    @property
    def vocab_size(self) -> int:
        """Number of tokens."""
        ...

    @property
    def separator(self) -> int | None:
        """The id between documents, None for none."""
        ...

    @property
    def fingerprint(self) -> str:
        """A hash that changes whenever the ids could."""
        ...

    def encode_batch(self, texts: Sequence[str], special: bool = True) -> list[list[int]]:
        """Return the ids of each text."""
        ...


def cores() -> int:
    """How many processor cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def id_dtype(vocab_size: int) -> np.dtype[Any]:
    """The type that ids are kept in: uint16 where it holds them all, else uint32."""
    return np.dtype("<u2" if vocab_size <= np.iinfo(np.uint16).max + 1 else "<u4")


def chunks(items: Iterable[_Item], size: Callable[[_Item], int]) -> Iterator[list[_Item]]:
    """Group items until each group has about CHUNK characters."""
    chunk: list[_Item] = []
    characters = 0
    for item in items:
        chunk.append(item)
        characters += size(item)
        if characters >= CHUNK:
            yield chunk
            chunk, characters = [], 0
    if chunk:
        yield chunk


def encoded(
    groups: Iterable[list[_Item]],
    texts: Callable[[list[_Item]], list[str]],
    tokenizer: BatchEncoder,
    workers: int | None = None,
) -> Iterator[tuple[list[_Item], Encoded]]:
    """Encode groups of items, in order, without the special tokens around a text.

    Args:
        groups: read as far ahead as the workers need, and no further.
        texts: the texts of a group.
        tokenizer: a `Tokenizer`; any other is used in this process.
        workers: processes; None for one per core. A short input is encoded in this process.

    Yields:
        Each group, and what the texts of it are encoded to.

    Raises:
        UserError: a text can't be encoded, or a worker was killed.
    """
    count = cores() if workers is None else workers
    dtype = id_dtype(tokenizer.vocab_size)
    source = iter(groups)
    first = list(islice(source, _INLINE + 1))
    source = chain(first, source)
    if count <= 1 or len(first) <= _INLINE or not isinstance(tokenizer, Tokenizer):
        for group in source:
            yield group, _inline(tokenizer, texts(group), dtype)
        return
    with _pool(tokenizer, count, dtype) as submit:
        waiting: deque[tuple[list[_Item], Future[Encoded]]] = deque()
        for group in source:
            own = texts(group)
            tokenizer.require_encodable(own)
            waiting.append((group, submit(own)))
            # One more than there are workers waits, so that none of them ever does.
            if len(waiting) > 2 * count:
                group, future = waiting.popleft()
                yield group, future.result()
        while waiting:
            group, future = waiting.popleft()
            yield group, future.result()


def _inline(tokenizer: BatchEncoder, texts: Sequence[str], dtype: np.dtype[Any]) -> Encoded:
    ids = tokenizer.encode_batch(texts, special=False)
    lengths = np.fromiter(map(len, ids), dtype=np.uint32, count=len(ids))
    return lengths, np.fromiter(chain.from_iterable(ids), dtype=dtype, count=int(lengths.sum()))


class _Worker:
    """A process of `anyformer.data.encoding_worker`."""

    def __init__(self, greeting: bytes) -> None:
        # In a group of its own, so that Ctrl-C reaches only the calling program, which then ends it.
        apart: dict[str, Any] = (
            {"process_group": 0}
            if os.name == "posix"
            else {"creationflags": getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0)}
        )
        environment = {**os.environ, "TOKENIZERS_PARALLELISM": "false"}
        command = [sys.executable, "-P", str(Path(encoding_worker.__file__))]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        try:
            # Unbuffered, so that the pipe to a dead process can be closed: there is nothing left to write.
            self._process = subprocess.Popen(command, env=environment, bufsize=0, **pipes, **apart)
        except OSError as error:
            raise UserError(
                f"A process that tokenizes can't be started: {error.strerror or error}. Try --workers 1."
            ) from error
        self._answers = io.BufferedReader(cast("io.RawIOBase", self._process.stdout))
        self._send(greeting)

    def encode(self, texts: list[str]) -> tuple[bytes, bytes]:
        """Wait for what texts are encoded to. Raises UserError when they can't be, or the process is dead."""
        self._send(pickle.dumps(texts, protocol=pickle.HIGHEST_PROTOCOL))
        try:
            answer: tuple[bytes, bytes] | str = pickle.load(self._answers)
        except (EOFError, pickle.UnpicklingError):
            raise self._died() from None
        if isinstance(answer, str):
            raise UserError(f"The text can't be encoded: {answer}.")
        return answer

    def kill(self) -> None:
        """End the process at once."""
        self._process.kill()

    def close(self) -> None:
        """Let go of a process that was killed."""
        self._answers.close()
        if self._process.stdin is not None:
            self._process.stdin.close()
        self._process.wait()

    def _send(self, message: bytes) -> None:
        view = memoryview(message)
        try:
            while view:
                view = view[cast("Any", self._process.stdin).write(view) :]
        except OSError:
            raise self._died() from None

    def _died(self) -> UserError:
        status = self._process.wait()
        return UserError(
            f"A process that tokenizes ended with status {status}. If memory ran out, try fewer --workers."
        )


@contextmanager
def _pool(
    tokenizer: Tokenizer, count: int, dtype: np.dtype[Any]
) -> Generator[Callable[[list[str]], Future[Encoded]], None, None]:
    greeting = pickle.dumps((sys.path, tokenizer.backend.to_str(), "H" if dtype.itemsize == 2 else "I"))
    workers: list[_Worker] = []
    idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
    threads = ThreadPoolExecutor(count, thread_name_prefix="tokenize")

    def encode(texts: list[str]) -> Encoded:
        own = idle.get()
        try:
            lengths, ids = own.encode(texts)
        finally:
            idle.put(own)
        return np.frombuffer(lengths, dtype=np.uint32), np.frombuffer(ids, dtype=dtype.newbyteorder("="))

    try:
        for _ in range(count):
            workers.append(_Worker(greeting))
            idle.put(workers[-1])
        yield lambda texts: threads.submit(encode, texts)
    finally:
        # Killing them first ends the threads that wait for an answer.
        for own in workers:
            own.kill()
        threads.shutdown(cancel_futures=True)
        for own in workers:
            own.close()
