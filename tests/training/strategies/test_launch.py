"""The processes of a run start, speak and end as one; the first signal asks for the end, the second ends at once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from anyformer.errors import UserError
from anyformer.training.strategies import launch as module
from anyformer.training.strategies.launch import KilledError, interruptible, launch, needs_launch, one_of_many

pytestmark = pytest.mark.skipif(os.name != "posix", reason="processes are started on POSIX systems alone")

BEGIN = """
import os, signal, sys, threading, time
from pathlib import Path
rank, here = int(os.environ["RANK"]), Path(sys.argv[1])
(here / f"pid{rank}").write_text(str(os.getpid()))
"""

COMMAND = """
import sys
from pathlib import Path
from types import SimpleNamespace
from anyformer.cli import main as cli
from anyformer.training.strategies import launch as module
module._PROGRAM = (sys.argv[1],)
cli.import_module = lambda name: SimpleNamespace(run=lambda argv: module.launch(argv, 2))
sys.exit(cli.main(["train", sys.argv[2]]))
"""


def program(folder: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    """What each process runs instead of anyformer."""
    path = folder / "program.py"
    path.write_text(BEGIN + text, encoding="utf-8")
    monkeypatch.setattr(module, "_PROGRAM", (str(path),))


def gone(folder: Path) -> bool:
    """Whether both processes have ended."""
    pids = [int((folder / f"pid{rank}").read_text()) for rank in range(2)]
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        if not any(_runs(pid) for pid in pids):
            return True
        time.sleep(0.05)
    return False


def _runs(pid: int) -> bool:
    if not Path("/proc").is_dir():
        command = ["ps", "-o", "stat=", "-p", str(pid)]
        state = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
        return bool(state) and not state.startswith("Z")
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def test_only_the_first_process_speaks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    program(tmp_path, monkeypatch, 'print("rank", rank, os.environ["WORLD_SIZE"]); print("e", rank, file=sys.stderr)')
    assert launch([str(tmp_path)], 2) == 0
    assert capfd.readouterr() == ("rank 0 2\n", "e 0\n")


@pytest.mark.parametrize("failing", [0, 1])
def test_an_error_ends_all_and_is_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], failing: int
) -> None:
    monkeypatch.setattr(module, "_GRACE", 0.5)
    program(
        tmp_path,
        monkeypatch,
        f"""
if rank != {failing}:
    time.sleep(60)
while not (here / "pid{1 - failing}").exists():
    time.sleep(0.01)
print("anyformer: no such thing.", file=sys.stderr)
sys.exit(2)
""",
    )
    assert launch([str(tmp_path)], 2) == 2
    assert capfd.readouterr().err == "anyformer: no such thing.\n"
    assert gone(tmp_path)


def test_the_same_error_everywhere_is_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    program(tmp_path, monkeypatch, 'print("anyformer: no such thing.", file=sys.stderr); sys.exit(2)')
    assert launch([str(tmp_path)], 2) == 2
    assert capfd.readouterr().err == "anyformer: no such thing.\n"


def test_a_process_that_is_killed_ends_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_GRACE", 0.5)
    program(tmp_path, monkeypatch, "os.kill(os.getpid(), signal.SIGKILL) if rank else time.sleep(60)")
    with pytest.raises(UserError, match=r"Process 1 of 2 was killed by SIGKILL.*memory"):
        launch([str(tmp_path)], 2)
    assert gone(tmp_path)


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("kills", [1, 2])
def test_a_run_begins_again_after_a_kill(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], processes: int, kills: int
) -> None:
    monkeypatch.setattr(module, "_GRACE", 0.5)
    program(
        tmp_path,
        monkeypatch,
        f"""
if rank == {processes - 1}:
    with open(here / "starts", "a") as file:
        file.write("x")
    if (here / "starts").stat().st_size <= {kills}:
        os.kill(os.getpid(), signal.SIGKILL)
""",
    )
    if kills > 1:
        with pytest.raises(KilledError, match="killed by SIGKILL"):
            launch([str(tmp_path)], processes, restarts=1)
    else:
        assert launch([str(tmp_path)], processes, restarts=1) == 0
    assert (tmp_path / "starts").read_text() == "xx"
    assert capfd.readouterr().err.count("The run begins again; restarts that are left: 0.") == 1


def test_who_loses_the_others_says_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The real thing: process 0 waits in a collective for one that fails."""
    program(
        tmp_path,
        monkeypatch,
        """
from types import SimpleNamespace
from anyformer.cli import main as cli
from anyformer.errors import UserError
from anyformer.training.strategies.group import join
from anyformer.training.strategies.launch import one_of_many
def work(argv):
    with one_of_many():
        group = join("ddp", "cpu")
        try:
            group.any(False)
            if rank:
                raise UserError("The disk is full.")
            group.any(False)
        finally:
            group.close()
cli.import_module = lambda name: SimpleNamespace(run=work)
sys.exit(cli.main(["train"]))
""",
    )
    began = time.monotonic()
    assert launch([str(tmp_path)], 2) == 2
    assert time.monotonic() - began < 60
    assert capfd.readouterr().err == "anyformer: The disk is full.\n"


LIFELINE = """
from anyformer.training.strategies.launch import one_of_many
one_of_many().__enter__()
"""
CAREFUL = """
stopped = threading.Event()
signal.signal(signal.SIGINT, lambda *_: stopped.set())
(here / f"ready{rank}").touch()
while not stopped.wait(0.02):
    pass
sys.exit(130)
"""
CARELESS = """
signal.signal(signal.SIGINT, signal.SIG_IGN)
signal.signal(signal.SIGTERM, signal.SIG_IGN)
(here / f"ready{rank}").touch()
time.sleep(60)
"""


def command(folder: Path, text: str) -> subprocess.Popen[str]:
    """A launcher of its own, once its two processes are ready."""
    (folder / "program.py").write_text(BEGIN + LIFELINE + text, encoding="utf-8")
    (folder / "command.py").write_text(COMMAND, encoding="utf-8")
    started = subprocess.Popen(
        [sys.executable, str(folder / "command.py"), str(folder / "program.py"), str(folder)],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    deadline = time.monotonic() + 60
    while not all((folder / f"ready{rank}").exists() for rank in range(2)):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return started


def test_ctrl_c_stops_all_of_them(tmp_path: Path) -> None:
    with command(tmp_path, CAREFUL) as started:
        started.send_signal(signal.SIGINT)
        assert started.wait(30) == 130
    assert gone(tmp_path)


def test_ctrl_c_twice_ends_those_that_do_not_listen(tmp_path: Path) -> None:
    with command(tmp_path, CARELESS) as started:
        for _ in range(2):
            started.send_signal(signal.SIGINT)
            time.sleep(0.3)
        assert started.wait(30) == 130
        assert started.stderr is not None
        assert started.stderr.read() == "anyformer: interrupted.\n"
    assert gone(tmp_path)


def test_nobody_outlives_the_launcher(tmp_path: Path) -> None:
    with command(tmp_path, CARELESS) as started:
        started.kill()
        started.wait(30)
    assert gone(tmp_path)


@pytest.mark.parametrize(("told", "processes", "needed"), [({}, 2, True), ({}, 1, False), ({"RANK": "0"}, 2, False)])
def test_torchrun_starts_the_processes_itself(
    monkeypatch: pytest.MonkeyPatch, told: dict[str, str], processes: int, needed: bool
) -> None:
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in told.items():
        monkeypatch.setenv(name, value)
        monkeypatch.setenv("WORLD_SIZE", "2")
    assert needs_launch(processes) is needed


def test_under_torchrun_a_lost_process_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("ANYFORMER_LIFELINE", raising=False)
    with pytest.raises(UserError, match="Another process"), one_of_many():
        raise RuntimeError("[gloo/transport/tcp/pair.cc:553] Connection closed by peer")
    with pytest.raises(RuntimeError, match="something else"), one_of_many():
        raise RuntimeError("something else")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_first_signal_marks_and_second_ends(number: signal.Signals, capfd: pytest.CaptureFixture[str]):
    before = signal.getsignal(number)
    with interruptible() as interrupt:
        assert interrupt.signal is None
        os.kill(os.getpid(), number)
        assert interrupt.signal == number
        assert interrupt.exit_status == 128 + number
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), number)
    assert signal.getsignal(number) is before
    assert "once more to quit" in capfd.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_that_is_ignored_stays_ignored(number: signal.Signals):
    before = signal.signal(number, signal.SIG_IGN)
    try:
        with interruptible() as interrupt:
            os.kill(os.getpid(), number)
            assert interrupt.signal is None
        assert signal.getsignal(number) is signal.SIG_IGN
    finally:
        signal.signal(number, before)


def test_without_standard_error_a_signal_still_only_marks():
    kept = os.dup(2)
    os.close(2)
    try:
        with interruptible() as interrupt:
            os.kill(os.getpid(), signal.SIGTERM)
    finally:
        os.dup2(kept, 2)
        os.close(kept)
    assert interrupt.signal == signal.SIGTERM


def test_other_threads_are_left_alone():
    asked: list[bool] = []

    def work() -> None:
        with interruptible() as interrupt:
            asked.append(interrupt.signal is not None)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert asked == [False]


TORCH_TPU = """
import os, sys
from types import ModuleType, SimpleNamespace
def set_tpu_launch_env(*, nproc_per_node):
    {body}
sys.modules["torch"], sys.modules["torch.tpu"] = ModuleType("torch"), ModuleType("torch.tpu")
sys.modules["torch.tpu"].distributed = SimpleNamespace(set_tpu_launch_env=set_tpu_launch_env)
"""


def test_processes_on_tpus_know_of_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    fake = TORCH_TPU.format(body='print("noise"); os.environ["TORCH_TPU_TOPOLOGY"] = f"{nproc_per_node},1,1"')
    monkeypatch.setattr(module, "_TPU_LAUNCH", fake + module._TPU_LAUNCH)
    program(tmp_path, monkeypatch, 'print(os.environ.get("TORCH_TPU_TOPOLOGY"))')
    assert launch([str(tmp_path)], 2, device="tpu") == 0
    assert launch([str(tmp_path)], 2, device="cpu") == 0
    assert capfd.readouterr().out == "2,1,1\nNone\n"


def test_tpus_that_are_not_there_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = TORCH_TPU.format(body='raise ValueError("expected TPU devices, got none")')
    monkeypatch.setattr(module, "_TPU_LAUNCH", fake + module._TPU_LAUNCH)
    with pytest.raises(UserError, match="tpu can't be used by 2 processes: ValueError: expected TPU devices, got none"):
        launch([str(tmp_path)], 2, device="tpu")
