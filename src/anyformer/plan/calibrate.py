"""How long a step takes: on this machine by real steps, elsewhere by a device's peak."""

from dataclasses import dataclass, replace

from anyformer.plan.devices import CPU_SHARES, SHARES, Device
from anyformer.plan.measure import Measured, measure
from anyformer.plan.step import StepCount, Workload, count_step
from anyformer.training.precision import peak_flops_per_second

STEPS = 20
SECONDS = 60.0
"""Both are what calibrating takes at most, about."""
FEW_SECONDS = 2.0
"""Seconds of measuring where nobody asked for it."""
_FEWEST_STEPS = 4
"""The first one, which allocates, and three that tell the time."""
_LAYERS = (1, 3)
"""Layers of the two smaller models, in each stack."""


@dataclass(frozen=True)
class StepTime:
    """Seconds of a step.

    Attributes:
        seconds: the likely ones.
        low, high: seconds that would surprise.
        reason: where they come from, for people.
    """

    seconds: float
    low: float
    high: float
    reason: str


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
    told = f"{reason}: {low:.0%}, likely {likely:.0%}, {high:.0%}"
    return StepTime(flops / peak / likely, flops / peak / high, flops / peak / low, told)


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
        found = measure(alone, steps=STEPS, seconds=seconds)
        return _step_time(found, found.step, f"{len(found.seconds)} real steps of this model, just now")
    few, more = (alone.shorten(layers) for layers in _LAYERS)
    flops_few, flops_more = (count_step(replace(part, in_heap=False)).flops for part in (few, more))
    if flops_more >= count.flops or not _in_time(workload, flops_more, seconds):
        return by_peak(workload, count.flops, Device("cpu", float("inf")))
    small, large = (measure(part, steps=STEPS, seconds=seconds / 2) for part in (few, more))
    slope = max(0.0, large.step - small.step) / (flops_more - flops_few)
    likely = large.step + slope * (count.flops - flops_more)
    told = f"{len(small.seconds)} and {len(large.seconds)} real steps of this model with {_LAYERS[0]} and {_LAYERS[1]}"
    return _step_time(large, likely, f"{told} layers, just now, and a line through them")


def _in_time(workload: Workload, flops: int, seconds: float) -> bool:
    """Whether enough steps are likely to be done in time."""
    return by_peak(workload, flops, Device("cpu", float("inf"))).seconds * _FEWEST_STEPS <= seconds


def _step_time(found: Measured, seconds: float, reason: str) -> StepTime:
    """The seconds, spread as those that were measured."""
    times, scale = sorted(found.seconds), seconds / found.step
    tenth = len(times) // 10
    return StepTime(seconds, times[tenth] * scale, times[-1 - tenth] * scale, reason)
