"""Jobs on other machines, by dask.distributed: a scheduler hands them to its workers, of which some may come and go."""

import logging
import os
import socket
from collections.abc import Callable, Generator
from concurrent.futures import CancelledError, Executor, Future
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from typing_extensions import override

from anyformer.errors import UserError, cut, quote
from anyformer.processes import ProcessExecutor

P = ParamSpec("P")
T = TypeVar("T")

_PATIENCE = 10.0
"""Seconds that a scheduler has to answer."""


class _Workers(Executor):
    """Calls in processes of the workers, in this folder."""

    def __init__(self, executor: Executor) -> None:
        self._executor, self._folder = executor, str(Path.cwd())

    @override
    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Call the function on any worker, and again on another if that one is lost."""
        return self._executor.submit(_call, self._folder, partial(fn, *args, **kwargs))


def _call(folder: str, work: Callable[[], T]) -> T:
    """Work in a process of its own, for a worker has threads, and training wants all of its process.

    Raises UserError where this machine has no such folder.
    """
    if not Path(folder).is_dir():
        raise UserError(
            f"The worker on {socket.gethostname()} does not see the folder {folder}: start workers where it has the "
            "same path, on a file system that all of them share."
        )
    worker: Any = import_module("distributed").get_worker()
    threads = max(1, (os.cpu_count() or 1) // worker.state.nthreads)
    with ProcessExecutor(1, threads, folder) as executor:
        return executor.submit(work).result()


@contextmanager
def workers(address: str) -> Generator[Executor]:
    """The workers of a scheduler, as an executor of concurrent.futures.

    Raises:
        UserError: dask isn't installed, no scheduler answers at the address, or it or too many workers are lost.
    """
    try:
        distributed: Any = import_module("distributed")
    except ImportError as error:
        raise UserError("--scheduler needs dask: pip install 'anyformer[cluster]'") from error
    logging.getLogger("distributed").setLevel(logging.CRITICAL)  # what it would say is in our sentences
    try:
        client: Any = distributed.Client(address, timeout=_PATIENCE, set_as_default=False)
    except (OSError, ValueError) as error:  # its TimeoutError among them
        raise UserError(
            f"No scheduler answers at {quote(address)} ({cut(str(error).splitlines()[0])}): start one with `dask "
            "scheduler`, and give the address that it prints, such as tcp://node0:8786."
        ) from error
    try:
        yield _Workers(client.get_executor(pure=False))
    except distributed.KilledWorker as error:
        raise UserError(
            "The work stopped: several workers in turn were killed at the same job, as happens when memory runs "
            "out. The same command goes on with it."
        ) from error
    except (CancelledError, distributed.comm.CommClosedError) as error:
        raise UserError(
            f"The work stopped: the scheduler at {quote(address)} is gone. The same command goes on with it."
        ) from error
    finally:
        client.close()
