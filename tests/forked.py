"""Programs of Python that begin with everything imported: an import of torch takes two seconds, a fork 10 ms.

For tests of what a process does, such as how it takes a signal. Where the start or the end of the interpreter matters,
a test starts one with subprocess.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

_SERVER = """
import atexit, gc, importlib, json, os, socket, sys, threading, traceback

def run(job):
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        stream = open(number, mode, buffering=1 if number == 2 else -1, closefd=False)
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)
    sys.argv = ["-c", *job["argv"]]
    os.environ.update(job["environment"])
    os.chdir(job["folder"])
    if job["folder"] not in sys.path:
        sys.path.insert(0, job["folder"])
    try:
        exec(job["code"], {"__name__": "__main__"})
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        status = 1
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)

for name in sys.argv[2:]:
    importlib.import_module(name)
gc.collect()
gc.freeze()
connection = socket.socket(fileno=int(sys.argv[1]))
while True:
    message, streams, _, _ = socket.recv_fds(connection, 1 << 20, 3)
    if not message:
        break
    job = json.loads(message)
    if "code" in job:
        pid = os.fork()
        if pid == 0:
            connection.close()
            for number, stream in enumerate(streams):
                os.dup2(stream, number)
                os.close(stream)
            if job["session"]:
                os.setsid()
            run(job)
        for stream in streams:
            os.close(stream)
        answer = pid
    else:
        pid, status = os.waitpid(job["pid"], os.WNOHANG)
        answer = os.waitstatus_to_exitcode(status) if pid else None
    connection.sendall(json.dumps(answer).encode() + b"\\n")
"""


class Program:
    """A program that was started, with the methods of `subprocess.Popen` that tests use."""

    def __init__(self, server: Forks, job: dict[str, Any], streams: list[int]) -> None:
        self._server = server
        self.returncode: int | None = None
        ours: list[IO[str]] = []
        theirs = [os.dup(stream) for stream in streams]
        if not streams:
            for number in range(3):
                read, write = os.pipe()
                theirs.append(write if number else read)
                ours.append(os.fdopen(read if number else write, "r" if number else "w"))
            self.stdin, self.stdout, self.stderr = ours
        self.pid: int = server.ask(job, theirs)
        for stream in theirs:
            os.close(stream)

    def poll(self) -> int | None:
        if self.returncode is None:
            self.returncode = self._server.ask({"pid": self.pid})
        return self.returncode

    def wait(self) -> int:
        while (status := self.poll()) is None:
            time.sleep(0.005)
        return status

    def communicate(self, timeout: float = 60) -> tuple[str, str]:
        """Standard output and standard error until the end."""
        self.stdin.close()
        with ThreadPoolExecutor(2) as readers, self.stdout, self.stderr:
            out, err = (readers.submit(stream.read) for stream in (self.stdout, self.stderr))
            try:
                result = out.result(timeout), err.result(timeout)
            except TimeoutError:
                self.kill()
                raise
        self.wait()
        return result

    def send_signal(self, number: signal.Signals) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class Forks:
    """A process with modules imported that starts programs; see `forks`."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection, self._lock = connection, threading.Lock()

    def ask(self, request: dict[str, Any], streams: Sequence[int] = ()) -> Any:
        with self._lock:
            socket.send_fds(self._connection, [json.dumps(request).encode()], streams)
            answer = b""
            while not answer.endswith(b"\n"):
                received = self._connection.recv(64)
                assert received, "the process that forks programs has ended"
                answer += received
        return json.loads(answer)

    def start(
        self,
        code: str,
        *argv: str,
        environment: Mapping[str, str] | None = None,
        streams: list[int] | None = None,
        session: bool = False,
    ) -> Program:
        """Start a program as `python -c CODE ARGV` does.

        Args:
            environment: variables that are set, of which those that imports read have no effect.
            streams: descriptors of its standard streams; pipes by default.
            session: whether it is the first process of a session of its own.
        """
        variables = {**os.environ, **(environment or {})}
        job = {"code": code, "argv": argv, "environment": variables, "folder": str(Path.cwd()), "session": session}
        return Program(self, job, streams or [])


ANYFORMER = "import sys; from anyformer.cli.main import main; sys.exit(main(sys.argv[1:]))"
"""The command `anyformer ARGV`."""


@contextmanager
def forks(*modules: str, **environment: str) -> Iterator[Forks]:
    """A process with modules imported, in an environment of one thread."""
    ours, theirs = socket.socketpair()
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    command = [sys.executable, "-c", _SERVER, str(theirs.fileno()), *modules]
    with subprocess.Popen(command, env=environment, pass_fds=[theirs.fileno()]) as process:
        theirs.close()
        with ours:
            yield Forks(ours)
        process.wait(60)
