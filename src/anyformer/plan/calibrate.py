"""Time of a step: on this machine by real steps, whose memory is measured as well, elsewhere by a device's peak."""

import gc
import statistics
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from anyformer.kernels.packed_weight import begin_memory_block
from anyformer.plan.devices import CPU_SHARES, SHARES, Device
from anyformer.plan.step import StepCount, count_step
from anyformer.plan.workload import Workload
from anyformer.training.memory import keep_freed_memory, proc_field, return_freed_memory
from anyformer.training.precision import peak_flops_per_second
from anyformer.training.recipe import make_plan, make_strategy
from anyformer.training.strategies.base import Strategy
from anyformer.training.strategies.group import Group

STEPS = 20
SECONDS = 60.0
"""Both are what calibrating takes at most, about."""
FEW_SECONDS = 2.0
"""Seconds of measuring where nobody asked for it."""
_FEWEST_STEPS = 4
"""The first one, which allocates, and three that tell the time."""
_LAYERS = (1, 3)
"""Layers of the two smaller models, in each stack."""
_RESET = Path("/proc/self/clear_refs")
"""Where Linux is told to forget the largest size that a process had."""


@dataclass(frozen=True)
class StepTime:
    """Seconds of a step.

    Attributes:
        low, high: seconds that would surprise.
        reason: where they come from, for people.
    """

    seconds: float
    low: float
    high: float
    reason: str


@dataclass(frozen=True)
class Measured:
    """Time and memory of real steps.

    Attributes:
        seconds: of each step after the first.
        peak: bytes that the process grew by at most; None where the system does not tell.
    """

    seconds: tuple[float, ...]
    peak: int | None

    @property
    def step(self) -> float:
        """Seconds of a step: the median."""
        return statistics.median(self.seconds)


def by_peak(workload: Workload, flops: float, device: Device) -> StepTime:
    """The step time that the peak of a device makes likely, of all processes together."""
    name = workload.precision.name
    if device.name == "cpu":
        peak, shares = peak_flops_per_second(workload.precision), CPU_SHARES
        reason = f"{peak / 1e12:.2f} TFLOP/s, which products reach here, and a share of it"
    else:
        peak, shares = device.peak.get(name, device.peak["float32"]) * workload.config.processes, SHARES
        reason = f"{device.peak.get(name, device.peak['float32']) / 1e12:g} TFLOP/s a device, and a share of it"
    low, likely, high = shares
    reason = f"{reason}: {low:.0%}, likely {likely:.0%}, {high:.0%}"
    return StepTime(flops / peak / likely, flops / peak / high, flops / peak / low, reason)


def calibrate(workload: Workload, count: StepCount, seconds: float = SECONDS) -> StepTime:
    """Take real steps on this machine, of two smaller models where those of the whole would take too long.

    Time grows linearly with the layers, as operations do, from what embeddings and logits take. Several processes share
    this machine's cores, so one that uses all of them stands for them.

    Args:
        workload: which this machine has the memory for.
        count: of it.
        seconds: that it may take, about.
    """
    alone = workload.change(engine=None, processes=1)
    if _in_time(workload, count.flops, seconds):
        whole = measure(alone, steps=STEPS, seconds=seconds)
        return _step_time(whole, whole.step, f"{len(whole.seconds)} real steps of this model, just now")
    few, more = (alone.shorten(layers) for layers in _LAYERS)
    flops_few, flops_more = (count_step(replace(part, in_heap=False)).flops for part in (few, more))
    if flops_more >= count.flops or not _in_time(workload, flops_more, seconds):
        return by_peak(workload, count.flops, Device("cpu", float("inf")))
    small, large = (measure(part, steps=STEPS, seconds=seconds / 2) for part in (few, more))
    slope = max(0.0, large.step - small.step) / (flops_more - flops_few)
    likely = large.step + slope * (count.flops - flops_more)
    steps = f"{len(small.seconds)} and {len(large.seconds)} real steps of this model with {_LAYERS[0]} and {_LAYERS[1]}"
    return _step_time(large, likely, f"{steps} layers, just now, and a line through them")


def _in_time(workload: Workload, flops: int, seconds: float) -> bool:
    """Whether enough steps are likely to be done in time."""
    return by_peak(workload, flops, Device("cpu", float("inf"))).seconds * _FEWEST_STEPS <= seconds


def _step_time(measured: Measured, seconds: float, reason: str) -> StepTime:
    """The seconds, spread as those that were measured."""
    times, scale = sorted(measured.seconds), seconds / measured.step
    tenth = len(times) // 10
    return StepTime(seconds, times[tenth] * scale, times[-1 - tenth] * scale, reason)


def measure(workload: Workload, group: Group | None = None, *, steps: int = 20, seconds: float = 60.0) -> Measured:
    """Take the workload's step for real, as a run does, and some more.

    Args:
        group: the processes that train together; None: this one alone.
        steps: how many are timed, at most; the first one, which allocates, comes before.
        seconds: after which no more are begun.
    """
    group = group or Group()
    return_freed_memory()  # also that of gloo's threads, which could not be had back later
    with _strategy(_smallest(workload), group) as strategy:  # loads the libraries' code, which isn't the model's memory
        _steps(strategy, _smallest(workload), 2, seconds)
    begin_memory_block()  # what is left of one would be no growth
    gc.collect()
    return_freed_memory()
    base = proc_field("self/status", "VmRSS") if _RESET.exists() else None
    with _strategy(workload, group) as strategy:
        if base is not None:
            _RESET.write_text("5")
        times = _steps(strategy, workload, steps + 1, seconds)
    peak = proc_field("self/status", "VmHWM")
    if workload.precision.device.type == "cuda":
        peak, base = torch.cuda.max_memory_allocated(), 0
    return Measured(tuple(times[1:] or times), None if peak is None or base is None else peak - base)


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
