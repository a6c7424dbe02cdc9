"""A scheduler of dask and its workers, on this machine."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import pytest

needs_dask = pytest.mark.skipif(find_spec("distributed") is None, reason="dask.distributed is not installed")


def free_port() -> int:
    """A port that nobody listens to."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@contextmanager
def _program(name: str, *argv: str, folder: Path) -> Generator[subprocess.Popen[bytes]]:
    """A program of dask's, whose log is in the folder."""
    with (folder / f"{name}-{time.monotonic_ns()}.log").open("wb") as log:
        command = [sys.executable, "-m", f"distributed.cli.dask_{name}", *argv]
        process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log)
        try:
            yield process
        finally:
            process.kill()
            process.wait()


@contextmanager
def scheduler(folder: Path) -> Generator[str]:
    """The address of a scheduler, whose log is in the folder."""
    port = str(free_port())
    with _program("scheduler", "--host", "127.0.0.1", "--port", port, "--no-dashboard", folder=folder):
        yield f"tcp://127.0.0.1:{port}"


def worker(address: str, folder: Path):
    """A worker, whose log is in the folder."""
    return _program("worker", address, "--nthreads", "1", "--no-nanny", "--no-dashboard", folder=folder)
