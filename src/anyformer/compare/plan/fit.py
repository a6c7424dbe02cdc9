"""Which flags would make a step fit, each tried by planning again."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from anyformer.compare.plan.step import Workload, count_step
from anyformer.errors import UserError
from anyformer.finetuning.config import CompleteFinetuneConfig

_MOST_PROCESSES = 8
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


def changes_that_fit(workload: Workload, room: float, *, shared: bool) -> tuple[Change, ...]:
    """Changes, cheapest first, up to the first that fits.

    Args:
        room: bytes for the training of one process, or of all of them.
        shared: whether all processes share it, as on a CPU.
    """
    tried: list[Change] = []
    for flags, changed in _candidates(workload, shared=shared):
        peak = count_step(changed).peak
        fits = peak * (changed.config.processes if shared else 1) <= room
        tried.append(Change(flags, peak, fits))
        if fits:
            break
    return tuple(tried)


def _candidates(workload: Workload, *, shared: bool) -> Iterator[tuple[str, Workload]]:
    """A smaller part of the batch at a time costs nothing; computing activations twice costs a third of the time; more
    processes cost devices; an adapter learns less."""
    config = workload.config
    parts = max(1, config.batch_size // config.processes)
    steps: list[tuple[str, dict[str, Any]]] = []
    compares = workload.task == "embed"
    if parts > config.grad_accumulation and not compares:
        steps += [(f"--grad-accumulation {n}", {"grad_accumulation": n}) for n in sorted({min(4, parts), parts})]
    best = steps[-1] if steps else ("", {})
    if not config.gradient_checkpointing:
        checkpoint = ("--gradient-checkpointing", {"gradient_checkpointing": True})
        steps.append(checkpoint)
        best = (f"{best[0]} {checkpoint[0]}".strip(), {**best[1], **checkpoint[1]})
        if best[0] != checkpoint[0]:
            steps.append(best)
    for flags, fields in steps:
        yield flags, workload.change(**fields)
    if not shared and workload.precision.name != "int8" and not compares:
        for processes in (2, 4, _MOST_PROCESSES):
            if processes > config.processes and config.batch_size % processes == 0:
                accumulation = min(best[1].get("grad_accumulation", config.grad_accumulation),
                                   config.batch_size // processes)  # fmt: skip
                fields = {**best[1], "engine": "fsdp", "processes": processes, "grad_accumulation": accumulation}
                rest = best[0].replace(f"--grad-accumulation {best[1].get('grad_accumulation')}", "").strip()
                told = f"--grad-accumulation {accumulation}" if accumulation > 1 else ""
                yield (
                    " ".join(f"{told} {rest} --engine fsdp --processes {processes}".split()),
                    workload.change(**fields),
                )
    if isinstance(config, CompleteFinetuneConfig) and config.lora is None and workload.model.d_model >= _LORA:
        try:
            changed = replace(config, lora=_LORA, **best[1])
        except UserError:
            return
        yield f"{best[0]} --lora {_LORA}".strip(), replace(workload, config=changed)
