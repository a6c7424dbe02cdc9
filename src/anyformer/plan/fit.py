"""Flags that would make a step fit, each tried by planning again."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from anyformer.errors import UserError
from anyformer.finetuning.config import CompleteFinetuneConfig
from anyformer.plan.step import StepCount, count_step
from anyformer.plan.workload import Workload
from anyformer.schema import flag

_PROCESSES = (2, 4, 8)
_LORA = 16


@dataclass(frozen=True)
class Change:
    """A change that was tried.

    Attributes:
        flags: as they are added to the command.
        peak: bytes of a process.
        fits: whether that is enough.
    """

    flags: str
    peak: int
    fits: bool


def changes_that_fit(
    workload: Workload, count: StepCount, room: float, *, shared: bool, say: Callable[[str], None]
) -> tuple[Change, ...]:
    """Changes of every kind, the mildest first, each kind up to the first that fits.

    What the C library's heap adds is taken to be the same share as without a change.

    Args:
        count: of the workload, which does not fit.
        room: bytes for the training of one process, or of all of them.
        shared: whether all processes share it, as on a CPU.
        say: is told the flags that are about to be tried.
    """
    heap = count.peak / (count.peak - count.allocator)
    stays = sum(count.resident.values())
    tried: list[Change] = []

    def fits(fields: dict[str, Any], at_least: float) -> bool:
        """Try a change, unless even what it leaves in memory between two steps is too much."""
        changed, flags = workload.change(**fields), _flags(fields)
        processes = changed.config.processes if shared else 1
        if at_least * processes > room:
            return False
        say(flags)
        peak = round(count_step(replace(changed, in_heap=False)).peak * heap)
        tried.append(Change(flags, peak, peak * processes <= room))
        return tried[-1].fits

    config, best = workload.config, dict[str, Any]()
    alone = list[bool]()
    for kind in _milder(workload):
        alone.append(any(fits(fields, stays) for fields in kind))
        best |= kind[-1]
    if len(alone) > 1 and not any(alone):
        alone.append(fits(best, stays))
    best = {} if any(alone) else best
    if not shared and workload.precision.name != "int8" and not workload.makes_vectors and not config.is_quantized:
        for processes in _PROCESSES:
            if processes > config.processes and config.batch_size % processes == 0:
                parts = min(best.get("grad_accumulation", config.grad_accumulation), config.batch_size // processes)
                fields = {**best, "grad_accumulation": parts, "engine": "fsdp", "processes": processes}
                if fits(fields, stays * config.processes / processes):
                    break
    if isinstance(config, CompleteFinetuneConfig) and workload.model.d_model >= _LORA and not config.is_quantized:
        adapter = {**best, **({} if config.lora else {"lora": _LORA})}
        # Integers change what is learned: only where nothing else is enough.
        for fields in (adapter, {**adapter, "quantize": "int4"}):
            try:
                if (fields != best and fits(fields, 0)) or any(change.fits for change in tried):
                    break
            except UserError:  # the engine does not go with quantized weights
                continue
    return tuple(tried)


def _milder(workload: Workload) -> Iterator[list[dict[str, Any]]]:
    """A batch in more parts, which costs nothing, and activations computed twice, which costs a third of the time."""
    config = workload.config
    parts = max(1, config.batch_size // config.processes)
    if parts > config.grad_accumulation and not workload.makes_vectors:
        counts = sorted({min(4, parts), parts} - {*range(config.grad_accumulation + 1)})
        yield [{"grad_accumulation": count} for count in counts]
    if not config.gradient_checkpointing:
        yield [{"gradient_checkpointing": True}]


def _flags(fields: dict[str, Any]) -> str:
    return " ".join(flag(name, value) for name, value in fields.items() if (name, value) != ("grad_accumulation", 1))
