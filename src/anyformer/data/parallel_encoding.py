"""Encoding in parallel: documents to ids, in order, in several processes, with a bounded number under way.

Each worker is a plain child process that knows nothing but the tokenizers library, and each has a thread here that
hands it one chunk of texts after the other. Nothing of the calling program is imported or copied into the workers, so
they start quickly, whatever the program has loaded, and end with it, however that ends. The ids do not depend on the
number of workers.
"""

import os
import pickle
import queue
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from itertools import chain, islice
from typing import Any, BinaryIO, cast

import numpy as np
import numpy.typing as npt

from anyformer import processes
from anyformer.data import encoding_worker
from anyformer.data.documents import Document
from anyformer.errors import UserError
from anyformer.tokenizer import Tokenizer

Ids = npt.NDArray[np.uint16 | np.uint32]
Lengths = npt.NDArray[np.uint32]
Chunk = list[tuple[str, Document]]
"""Documents, each with the name of the split it belongs to."""

CHUNK = 1 << 18
"""Characters that are handed to a worker at a time: a fraction of a second's work, and little memory."""

_INLINE = 4
"""Up to this number of chunks, starting processes would take longer than they save."""


def id_dtype(vocab_size: int) -> np.dtype[Any]:
    """The dtype of stored ids: uint16 where it holds them all, else uint32."""
    return np.dtype("<u2" if vocab_size <= 1 << 16 else "<u4")


def cores() -> int:
    """The number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def encode_chunks(
    documents: Iterable[tuple[str, Document]], tokenizer: Tokenizer, workers: int | None = None
) -> Iterator[tuple[Chunk, Lengths, Ids]]:
    """Encode documents in chunks, in order, without the special tokens around a text.

    They are read as far ahead as the workers need, and no further. A short input is encoded in this process.

    Yields:
        A chunk of the documents, the number of ids of each of them, and all their ids.

    Raises:
        UserError: a text can't be encoded, or a worker was killed.
    """
    workers = cores() if workers is None else workers
    dtype = id_dtype(tokenizer.vocab_size)
    chunks = _chunks(documents)
    first = list(islice(chunks, _INLINE + 1))
    chunks = ((chunk, [document.text for _, document in chunk]) for chunk in chain(first, chunks))
    # A worker has nothing but the backend, and what is derived from Tokenizer may encode in another way.
    if workers <= 1 or len(first) <= _INLINE or type(tokenizer) is not Tokenizer:
        for chunk, texts in chunks:
            ids = tokenizer.encode_batch(texts, special=False)
            lengths = np.fromiter(map(len, ids), dtype=np.uint32, count=len(ids))
            yield chunk, lengths, np.fromiter(chain.from_iterable(ids), dtype=dtype, count=int(lengths.sum()))
        return
    with _pool(tokenizer, workers, dtype) as submit:
        pending: deque[tuple[Chunk, Future[tuple[Lengths, Ids]]]] = deque()
        for chunk, texts in chunks:
            tokenizer.require_encodable(texts)
            pending.append((chunk, submit(texts)))
            # One more than there are workers waits, so that none of them ever does.
            if len(pending) > 2 * workers:
                chunk, future = pending.popleft()
                yield chunk, *future.result()
        for chunk, future in pending:
            yield chunk, *future.result()


def _chunks(documents: Iterable[tuple[str, Document]]) -> Iterator[Chunk]:
    chunk: Chunk = []
    characters = 0
    for split, document in documents:
        chunk.append((split, document))
        characters += len(document.text)
        if characters >= CHUNK:
            yield chunk
            chunk, characters = [], 0
    if chunk:
        yield chunk


class _Worker:
    def __init__(self, greeting: bytes) -> None:
        try:
            self._process = processes.start(
                processes.python(encoding_worker.__file__),
                changes={"TOKENIZERS_PARALLELISM": "false"},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                # In a group of its own, so that Ctrl-C reaches only the calling program, which then ends it.
                process_group=0,
                creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),
            )
        except OSError as error:
            raise UserError(
                f"A process that tokenizes can't be started: {error.strerror or error}. Try --workers 1."
            ) from error
        with self._alive():
            self._send(greeting)

    def encode(self, texts: list[str]) -> tuple[bytes, bytes]:
        """Return lengths and ids of texts. Raises UserError when they can't be encoded, or the process is dead."""
        with self._alive():
            self._send(pickle.dumps(texts, protocol=pickle.HIGHEST_PROTOCOL))
            result: tuple[bytes, bytes] | str = pickle.load(cast("BinaryIO", self._process.stdout))
        if isinstance(result, str):
            raise UserError(f"The text can't be encoded: {result}.")
        return result

    def kill(self) -> None:
        self._process.kill()

    def close(self) -> None:
        with suppress(OSError), self._process:  # what it wasn't sent yet is lost
            pass

    def _send(self, message: bytes) -> None:
        stdin = cast("BinaryIO", self._process.stdin)
        stdin.write(message)
        stdin.flush()

    @contextmanager
    def _alive(self) -> Generator[None]:
        try:
            yield
        except (OSError, EOFError, pickle.UnpicklingError):
            status = self._process.wait()
            raise UserError(
                f"A process that tokenizes ended with status {status}. If memory ran out, try fewer --workers."
            ) from None


@contextmanager
def _pool(
    tokenizer: Tokenizer, count: int, dtype: np.dtype[Any]
) -> Generator[Callable[[list[str]], Future[tuple[Lengths, Ids]]]]:
    greeting = pickle.dumps((sys.path, tokenizer.backend.to_str(), "H" if dtype.itemsize == 2 else "I"))
    workers: list[_Worker] = []
    idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
    threads = ThreadPoolExecutor(count, thread_name_prefix="tokenize")

    def encode(texts: list[str]) -> tuple[Lengths, Ids]:
        worker = idle.get()
        try:
            lengths, ids = worker.encode(texts)
        finally:
            idle.put(worker)
        return np.frombuffer(lengths, dtype=np.uint32), np.frombuffer(ids, dtype=dtype.newbyteorder("="))

    try:
        for _ in range(count):
            workers.append(_Worker(greeting))
            idle.put(workers[-1])
        yield lambda texts: threads.submit(encode, texts)
    finally:
        # Killing them first ends the threads that wait for a result.
        for worker in workers:
            worker.kill()
        threads.shutdown(cancel_futures=True)
        for worker in workers:
            worker.close()
