"""Calls in processes of their own, behind the interface of `concurrent.futures`.

`concurrent.futures.ProcessPoolExecutor` would import the caller's main module in each process, and from the current
folder. Here a process imports the module of the function that it calls, and ends with the one that started it, however
that ends.
"""

import os
import pickle
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from types import TracebackType
from typing import ParamSpec, TypeVar

from typing_extensions import override

from anyformer import processes

P = ParamSpec("P")
T = TypeVar("T")


class InlineExecutor(Executor):
    """Calls in the calling thread, where signals arrive; a future is done when it is returned."""

    @override
    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Call the function."""
        future: Future[T] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future


class ProcessExecutor(ThreadPoolExecutor):
    """Each call in a Python process that is started for it; leaving the context by an exception terminates them.

    Function, arguments and result have to be picklable, the function by its name.

    Args:
        count: Processes at a time.
        threads: Threads of each.
    """

    def __init__(self, count: int, threads: int) -> None:
        super().__init__(count)
        self._changes = {"OMP_NUM_THREADS": str(threads)}
        self._running: set[processes.Process] = set()

    @override
    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Call the function in a process.

        The future raises the function's exception, or ChildProcessError where the process ended without a result.
        """
        return super().submit(self._call, fn, args, kwargs)

    def _call(self, fn: Callable[..., T], args: object, kwargs: object) -> T:
        # In a session of its own, Ctrl-C in the terminal reaches it once: through `__exit__`.
        with processes.start(
            processes.python("-m", "anyformer.process_executor"),
            changes=self._changes,
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
