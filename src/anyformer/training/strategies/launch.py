"""The start of a run's processes on this machine, their end together, and the signals that ask for it.

torchrun does this for a cluster. Here a run is one command with one voice: process 0 speaks as a single process would,
each event is reported once, and Ctrl-C, an error or the end of the terminal leaves no process behind.

Nothing here imports torch: the process that watches needs no gigabyte of libraries.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from types import FrameType

from anyformer import processes as programs
from anyformer.errors import UserError, cut, nearest, quote
from anyformer.terminal import report
from anyformer.training.config import ENGINES, ONE_PROCESS

_PROGRAM = ("-m", "anyformer")
_SIGNALS = [signal.SIGINT, signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else [])]

_TPU_LAUNCH = """
import json, os, sys
from torch.tpu import distributed
distributed.set_tpu_launch_env(nproc_per_node=int(sys.argv[1]))
print(json.dumps({name: value for name, value in os.environ.items() if name.startswith("TORCH_TPU_")}))
"""
"""Program that prints what torch-tpu's processes have to know before they start."""

_LIFELINE = "ANYFORMER_LIFELINE"
"""Number of a pipe that is closed when the launcher is gone."""

_LOST = 75
"""Exit status of a process that stops because another one has."""

_GRACE = 5.0
"""Seconds that the others have to end by themselves, once one has failed."""


def check_engine(name: str | None, processes: int, tensor_parallel: int = 1, context_parallel: int = 1) -> None:
    """Decline an engine that can't run with this many processes, before anything is started.

    Raises UserError if there is no such engine, it isn't installed, or it does not fit the number of processes.
    """
    parts = {"tensor-parallel": tensor_parallel, "context-parallel": context_parallel}
    flags = " times ".join(f"--{name} {size}" for name, size in parts.items() if size > 1)
    if processes > 1 and processes % (tensor_parallel * context_parallel):
        raise UserError(f"{flags} does not divide the number of processes, {processes}: change one of them.")
    if name is None:
        if processes > 1:
            raise UserError(f"{processes} processes train together, and nothing says how: add --engine ddp or fsdp.")
        return
    if name not in ENGINES:
        raise UserError(f"There is no engine {quote(name)} ({nearest(name, ENGINES)}).")
    if name in ONE_PROCESS:
        if processes > 1:
            raise UserError(f"--engine {name} drives all devices by one process, and these are {processes}: start one.")
        return
    if processes < 2:
        raise UserError(
            f"--engine {name} is for several processes, and this is one: add --processes 2, start with torchrun, or "
            "leave --engine out."
        )
    if name == "deepspeed" and find_spec("deepspeed") is None:
        raise UserError("--engine deepspeed needs DeepSpeed: pip install 'anyformer[deepspeed]'")


def started_by_launcher() -> bool:
    """Whether torchrun, deepspeed or `launch` started this process as one of several."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def needs_launch(processes: int, restarts: int = 0) -> bool:
    """Whether this process has to start the ones that train."""
    return (processes > 1 or restarts > 0) and not started_by_launcher()


class KilledError(UserError):
    """A process of a run was killed."""


def launch(argv: Sequence[str], processes: int, restarts: int = 0, device: str | None = None) -> int:
    """Run `anyformer ARGV...` in processes on this machine.

    Args:
        argv: A command that goes on where it was, if it is started again.
        restarts: Times that it is, after a process was killed.
        device: The type of the devices that they train on, one each; TPUs have to be told of each other before.

    Returns:
        The exit status: 0, or that of the process that failed first. The others are ended then.

    Raises:
        KilledError: A process was killed, and no restart is left.
        KeyboardInterrupt: Ctrl-C came before the processes were ready for it, or twice.
    """
    for left in range(restarts, 0, -1):
        try:
            return _launch(argv, processes, device)
        except KilledError as error:
            report(f"anyformer: {error} The run begins again; restarts that are left: {left - 1}.\n")
    return _launch(argv, processes, device)


def _launch(argv: Sequence[str], processes: int, device: str | None) -> int:
    if os.name != "posix":
        raise UserError("--processes starts processes on Linux and macOS alone: start them with torchrun here.")
    lifeline, ours = os.pipe()
    with tempfile.TemporaryDirectory() as folder:
        crew = _Crew(Path(folder))
        try:
            common = _environment(processes, lifeline) | (_tpu_environment(processes) if device == "tpu" else {})
            # They end by themselves.
            with handled(lambda number, frame: crew.signal(number)):
                for rank in range(processes):
                    crew.start(argv, common | {"RANK": str(rank), "LOCAL_RANK": str(rank)}, lifeline)
                crew.watch()
        finally:
            crew.end()
            os.close(lifeline)
            os.close(ours)
        return crew.exit_status()


@contextmanager
def one_of_many() -> Generator[None]:
    """Context of a process that may be one of several: it ends when its launcher or another one does.

    Raises:
        SystemExit: another process has ended, and `launch` reports why.
        UserError: another process has ended, and nothing else reports why.
    """
    if not started_by_launcher():
        yield
        return
    line = os.environ.get(_LIFELINE)
    if line is not None:
        threading.Thread(target=_end_with_launcher, args=(int(line),), daemon=True).start()
    try:
        yield
    except RuntimeError as error:
        if not _is_lost_connection(error):
            raise
        if line is not None:
            raise SystemExit(_LOST) from error
        raise UserError(
            "Another process of this run has ended, so this one stops: its own message says why."
        ) from error


class _Crew:
    """The processes that were started, by rank, and the errors that all but the first print."""

    def __init__(self, folder: Path) -> None:
        self.processes: list[programs.Process] = []
        self.failed: list[int] = []
        self.interrupts = 0
        self._folder = folder

    def start(self, argv: Sequence[str], environment: dict[str, str], lifeline: int) -> None:
        """Start one. Only the first reads our input and speaks; errors of the others are kept in case they fail."""
        rank, muted = len(self.processes), bool(self.processes)
        with self._errors(rank).open("wb") as errors:
            process = programs.start(
                programs.python(*_PROGRAM, *argv),
                changes=environment,
                stdin=subprocess.DEVNULL if muted else None,
                stdout=subprocess.DEVNULL if muted else None,
                stderr=errors if muted else None,
                pass_fds=[lifeline],
                # Ctrl-C in a terminal goes to all processes of a session: these get it from us alone, and once.
                start_new_session=True,
            )
        self.processes.append(process)

    def signal(self, number: int) -> None:
        self.interrupts += 1
        for process in self.processes:
            if process.poll() is None:
                process.send_signal(number)

    def watch(self) -> None:
        """Wait until all have ended, or one has failed and the others had time to end."""
        deadline = float("inf")
        while time.monotonic() < deadline:
            ended = [rank for rank, process in enumerate(self.processes) if process.poll()]
            self.failed += [rank for rank in ended if rank not in self.failed]
            if all(process.returncode is not None for process in self.processes):
                return
            if (self.failed or self.interrupts > 1) and deadline == float("inf"):
                deadline = time.monotonic() + _GRACE
            time.sleep(0.05)

    def end(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()

    def exit_status(self) -> int:
        """The exit status of all together; prints the errors of the process that failed, unless it is the first."""
        causes = [rank for rank in self.failed if self.processes[rank].returncode != _LOST]
        status = self.processes[causes[0]].returncode if causes else 0
        if (not causes and self.interrupts > 1) or (status < 0 and self.interrupts):
            raise KeyboardInterrupt
        if not causes:
            return _LOST if self.failed else 0
        if status < 0:
            several = len(self.processes) > 1
            raise KilledError(
                f"{f'Process {causes[0]} of {len(self.processes)}' if several else 'The process'} was killed by "
                f"{signal.Signals(-status).name}, as happens when memory runs out"
                f"{', and the others were ended' if several else ''}."
            )
        if 0 not in causes:
            report(self._errors(causes[0]).read_text(encoding="utf-8", errors="replace"))
        return status

    def _errors(self, rank: int) -> Path:
        return self._folder / f"{rank}.txt"


def _environment(processes: int, lifeline: int) -> dict[str, str]:
    """Environment that torchrun would give the processes, and their shares of the machine."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    loops = [name for _, name in socket.if_nameindex() if name in ("lo", "lo0")]
    return {
        **({"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // processes))} if processes > 1 else {}),
        "TORCH_CPP_LOG_LEVEL": "ERROR",
        **({"GLOO_SOCKET_IFNAME": loops[0]} if loops else {}),
        **programs.environment(),
        "WORLD_SIZE": str(processes),
        "LOCAL_WORLD_SIZE": str(processes),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        _LIFELINE: str(lifeline),
    }


def _tpu_environment(processes: int) -> dict[str, str]:
    """Environment by which the processes of torch-tpu, one a device, find each other. Raises UserError without any."""
    try:
        printed = programs.run(programs.python("-c", _TPU_LAUNCH, str(processes)))
    except subprocess.CalledProcessError as error:
        reason = cut((error.stdout.strip().splitlines() or ["torch-tpu says nothing"])[-1])
        raise UserError(f"--device tpu can't be used by {processes} processes: {reason}") from error
    return dict(json.loads(printed.splitlines()[-1]))


def _end_with_launcher(lifeline: int) -> None:
    os.read(lifeline, 1)
    os._exit(_LOST)


def _is_lost_connection(error: RuntimeError) -> bool:
    """Whether the error is that another process is gone. gloo has no class of its own for that."""
    if "torch" not in sys.modules:
        return False
    from torch.distributed import DistError

    return isinstance(error, DistError) or "gloo" in str(error)


class Interrupt:
    """The signal that asks for the end of a run; None: none does."""

    signal: int | None = None

    @property
    def exit_status(self) -> int:
        """128 and the signal's number, as shells have it: 130 for Ctrl-C."""
        return 128 + (self.signal or signal.SIGINT)


@contextmanager
def handled(handler: Callable[[int, FrameType | None], None]) -> Generator[None]:
    """Context in which a handler gets SIGINT, SIGTERM and SIGHUP, if it is in the main thread.

    A signal that was ignored stays ignored, as `nohup` and the shell's background jobs want it.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    # None: the handler is not Python's, and can't be put back.
    earlier = {number: signal.getsignal(number) for number in _SIGNALS}
    caught = [number for number in _SIGNALS if earlier[number] not in (signal.SIG_IGN, None)]
    for number in caught:
        signal.signal(number, handler)
    try:
        yield
    finally:
        for number in caught:
            signal.signal(number, earlier[number])


@contextmanager
def interruptible() -> Generator[Interrupt]:
    """Context in which the first signal only sets a mark, to be read between two steps, and the second ends at once."""
    interrupt = Interrupt()

    def mark(number: int, frame: FrameType | None) -> None:
        if interrupt.signal is not None:
            raise KeyboardInterrupt
        interrupt.signal = number
        # Not print: a signal may come while something else is being printed. After SIGHUP the terminal is gone.
        with suppress(OSError):
            os.write(2, b"\nStopping after this step; once more to quit at once.\n")

    with handled(mark):
        yield interrupt
