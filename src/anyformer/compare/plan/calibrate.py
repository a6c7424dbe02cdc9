"""How long a step takes: on this machine by real steps, elsewhere by a device's peak."""

from dataclasses import dataclass, replace

from anyformer.compare.plan.devices import CPU_SHARES, SHARES, Device
from anyformer.compare.plan.measure import measure
from anyformer.compare.plan.step import StepCount, Workload, count_step
from anyformer.training.precision import peak_flops_per_second

STEPS = 20
_PATIENCE = 60.0
"""Seconds that calibrating may take, about."""


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
    """What the peak of a device makes likely, of all processes together."""
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


def calibrate(workload: Workload, count: StepCount, *, memory: float = float("inf")) -> StepTime:
    """Take real steps on this machine, of a model with fewer layers where those of the whole would take too long.

    Several processes share this machine's cores, so one that uses all of them stands for them.

    Args:
        count: of the workload.
        memory: bytes that there are.
    """
    alone = replace(workload, config=replace(workload.config, engine=None, processes=1))
    guess = by_peak(workload, count.flops, Device("cpu", memory)).seconds * STEPS
    part, scale, told = alone, 1.0, "real steps of this model"
    if guess > _PATIENCE or count.peak * workload.config.processes > memory:
        model = workload.model
        layers = {name: min(getattr(model, name), 1) for name in ("encoder_layers", "decoder_layers")}
        part = replace(alone, model=model.replace(**layers))
        small = count_step(part)
        if small.peak > memory or guess * small.flops / count.flops > 4 * _PATIENCE:
            return by_peak(workload, count.flops, Device("cpu", memory))
        scale, told = count.flops / small.flops, "real steps of this model with one layer, times the operations"
    found = measure(part, steps=STEPS, seconds=_PATIENCE)
    times = sorted(found.seconds)
    low, high = times[len(times) // 10], times[-1 - len(times) // 10]
    return StepTime(found.step * scale, low * scale, high * scale, f"{len(times)} {told}, just now")
