"""The tests' own programs: one that is forked does what one that is started does."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from tests.forked import Forks, forks

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")


@pytest.fixture(scope="module")
def server() -> Iterator[Forks]:
    with forks("string") as server:
        yield server


def test_streams_arguments_and_status(server: Forks) -> None:
    code = "import os, sys; print(sys.argv, sys.stdin.read(), os.environ['A'], 'string' in sys.modules); sys.exit(3)"
    program = server.start(code, "x", environment={"A": "b"})
    program.stdin.write("text")
    assert program.communicate() == ("['-c', 'x'] text b True\n", "")
    assert program.returncode == 3


def test_an_error_is_shown_and_exits_run(server: Forks) -> None:
    out, err = server.start("import atexit; atexit.register(print, 'end'); 1 / 0").communicate()
    assert out == "end\n"
    assert err.endswith("ZeroDivisionError: division by zero\n")


def test_signals(server: Forks) -> None:
    for number, status in ((signal.SIGINT, 1), (signal.SIGTERM, -signal.SIGTERM), (signal.SIGKILL, -signal.SIGKILL)):
        program = server.start("import time; print('begun', flush=True); time.sleep(60)")
        assert program.stdout.readline() == "begun\n"
        assert program.poll() is None
        program.send_signal(number)
        program.communicate()
        assert program.returncode == status
