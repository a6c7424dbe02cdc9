"""Real training steps, timed, and what memory the process takes for them."""

import gc
import re
import statistics
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from anyformer.kernels.packed_weight import begin_memory_block
from anyformer.plan.step import Workload
from anyformer.training.memory import keep_freed_memory, return_freed_memory
from anyformer.training.precision import start_compiler
from anyformer.training.recipe import make_plan, make_strategy
from anyformer.training.strategies.base import Strategy
from anyformer.training.strategies.group import Group

_STATUS = Path("/proc/self/status")
_RESET = Path("/proc/self/clear_refs")


@dataclass(frozen=True)
class Measured:
    """Time and memory of real steps.

    Attributes:
        seconds: of each step after the first.
        peak: bytes that the process grew by at most; None where the system does not tell.
        base: bytes of the process before: the interpreter, torch, and the code that a step runs.
    """

    seconds: tuple[float, ...]
    peak: int | None
    base: int | None

    @property
    def step(self) -> float:
        """Seconds of a step: the median."""
        return statistics.median(self.seconds)


def measure(workload: Workload, group: Group | None = None, *, steps: int = 20, seconds: float = 60.0) -> Measured:
    """Take the workload's step for real, as a run does, and some more.

    Args:
        group: the processes that train together; None: this one alone.
        steps: how many are timed, at most; the first one, which allocates, comes before.
        seconds: after which no more are begun.
    """
    group = group or Group()
    start_compiler(workload.precision)
    return_freed_memory()  # also that of gloo's threads, which could not be had back later
    with _strategy(_smallest(workload), group) as strategy:  # loads the libraries' code, which isn't the model's memory
        _steps(strategy, _smallest(workload), 2, seconds)
    begin_memory_block()  # what is left of one would be no growth
    gc.collect()
    return_freed_memory()
    base = resident("VmRSS")
    with _strategy(workload, group) as strategy:
        if base is not None:
            _RESET.write_text("5")
        times = _steps(strategy, workload, steps + 1, seconds)
    peak = resident("VmHWM")
    if workload.precision.device.type == "cuda":
        peak, base = torch.cuda.max_memory_allocated(), 0
    return Measured(tuple(times[1:] or times), None if peak is None or base is None else peak - base, base)


@contextmanager
def _strategy(workload: Workload, group: Group) -> Generator[Strategy]:
    torch.manual_seed(workload.config.seed)
    plan = make_plan(workload.config, workload.precision, workload.loss)
    strategy = make_strategy(workload.config.engine, workload.draw(), plan, group)
    gc.collect()
    try:
        yield strategy
    finally:
        strategy.close()


def _steps(strategy: Strategy, workload: Workload, count: int, seconds: float) -> list[float]:
    end, batch, times = time.monotonic() + seconds, workload.batch(), list[float]()
    for number in range(count):
        start = time.perf_counter()
        strategy.step(number, batch, workload.config.learning_rate).tolist()
        times.append(time.perf_counter() - start)
        if not number:
            keep_freed_memory()  # as a run does
        if strategy.group.any(time.monotonic() > end and number > 1):
            break
    return times


def _smallest(workload: Workload) -> Workload:
    """The workload with one layer a stack and a text for each process."""
    rows = max(2, workload.config.processes)
    return workload.shorten(1).change(batch_size=rows, batch_tokens=rows * 16, context=16, grad_accumulation=1)


def resident(field: str = "VmRSS") -> int | None:
    """A field of the process's status, in bytes."""
    try:
        found = re.search(rf"^{field}:\s*(\d+) kB", _STATUS.read_text(), re.MULTILINE)
        return int(found[1]) * 1024 if found and _RESET.exists() else None
    except OSError:
        return None
