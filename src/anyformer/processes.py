"""Programs that are started, and jobs in processes of this machine or of others.

No other module starts any, and what is started never imports from the current folder.

A stranger may have filled that folder. ``python -m`` and ``python -c`` put it first on `sys.path`; ``-P`` and
PYTHONSAFEPATH leave it out, here and in what the program itself starts. Nor is a program found there.

On other machines jobs are done by dask.distributed: a scheduler hands them to its workers, of which some may come and
go.
"""

import logging
import os
import pickle
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import CancelledError, Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from pathlib import Path
from types import TracebackType
from typing import Any, ParamSpec, TypeVar

from typing_extensions import override

from anyformer.errors import UserError, cut, library, quote

P = ParamSpec("P")
T = TypeVar("T")
Process = subprocess.Popen[bytes]


def python(*arguments: str) -> list[str]:
    """The command that runs this Python with arguments such as ``"-m", "package.module"``."""
    return [sys.executable, "-P", *arguments]


def environment(changes: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment of a program that is started, with changes."""
    return {**os.environ, "PYTHONSAFEPATH": "1", **(changes or {})}


def cores() -> int:
    """The number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def find(name: str) -> str | None:
    """The absolute path of a program on the PATH; None where there is none, or one in the current folder alone.

    That is where Windows looks first, and what an empty entry of the PATH means.
    """
    program = shutil.which(name)
    if program is not None and Path(name).name != name:
        return str(Path(program).absolute())  # its folder was given
    return program if program is not None and Path(program).is_absolute() else None


def start(command: Sequence[str], *, changes: Mapping[str, str] | None = None, **options: Any) -> Process:
    """Start a program in `environment(changes)`, with more options of `subprocess.Popen`. May raise OSError."""
    return Process(command, env=environment(changes), text=False, **options)


def run(
    command: Sequence[str],
    *,
    folder: Path | None = None,
    changes: Mapping[str, str] | None = None,
    timeout: float | None = None,
) -> str:
    """Run a program to its end in `environment(changes)`, and return what it prints, errors among it.

    Raises:
        OSError: it can't be started.
        subprocess.CalledProcessError: it fails; `stdout` has what it printed.
        subprocess.TimeoutExpired: it takes longer than that many seconds.
    """
    done = subprocess.run(
        command,
        cwd=folder,
        env=environment(changes),
        check=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        timeout=timeout,
    )
    return done.stdout


class InlineExecutor(Executor):
    """Calls in the calling thread, where signals arrive; a future is done when it is returned."""

    @override
    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        future: Future[T] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future


class ProcessExecutor(ThreadPoolExecutor):
    """Each call in a Python process that is started for it; leaving the context by an exception terminates them.

    Function, arguments and result have to be picklable, the function by its name. A process of
    `concurrent.futures.ProcessPoolExecutor` would import the caller's main module, and from the current folder; one of
    these imports the module of the function, and ends with the process that started it, however that ends.

    Args:
        folder: Where they are; None: where this one is.
    """

    def __init__(self, count: int, threads: int, folder: str | None = None) -> None:
        super().__init__(count)
        self._folder = folder
        self._changes = {"OMP_NUM_THREADS": str(threads), "RAYON_NUM_THREADS": str(threads)}
        self._running: set[Process] = set()

    @override
    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Call the function in a process.

        The future raises the function's exception, or ChildProcessError where the process ended without a result.
        """
        return super().submit(self._call, fn, args, kwargs)

    def _call(self, fn: Callable[..., T], args: object, kwargs: object) -> T:
        # In a session of its own, Ctrl-C in the terminal reaches it once: through `__exit__`.
        with start(
            python("-m", "anyformer.processes"),
            changes=self._changes,
            cwd=self._folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        ) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            self._running.add(process)
            process.stdin.write(pickle.dumps((fn, args, kwargs)))
            process.stdin.flush()
            answer = process.stdout.read()
            self._running.discard(process)
        if not answer:
            raise ChildProcessError(f"a process ended with status {process.returncode}, and without a result")
        is_result, value = pickle.loads(answer)
        if is_result:
            return value
        raise value

    @override
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is not None:
            for process in [*self._running]:
                process.terminate()
        self.shutdown(cancel_futures=True)


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
    distributed = library("distributed", "--scheduler", "cluster", "dask")
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


def main() -> None:
    """Make the call that is read from standard input, and write what it returns or raises to standard output."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever else is printed must not come between
    fn, args, kwargs = pickle.load(sys.stdin.buffer)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        answer = pickle.dumps((True, fn(*args, **kwargs)))
    except Exception as error:
        answer = pickle.dumps((False, error))
    with answers:
        answers.write(answer)


def _end_with_parent() -> None:
    """End this process as by SIGTERM once standard input ends."""
    while os.read(0, 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    main()
