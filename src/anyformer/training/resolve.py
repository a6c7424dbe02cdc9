"""Every choice that a run leaves open, made and checked in one place."""

from __future__ import annotations

from dataclasses import dataclass, replace

from rich.console import Console

from anyformer.runs.tracking import check as check_trackers
from anyformer.training.averaging import make_average
from anyformer.training.config import CompleteConfig, TrainConfig
from anyformer.training.kernels import make_ready
from anyformer.training.optimizer import supports_sharded
from anyformer.training.precision import Precision, choose_compilation, choose_precision
from anyformer.training.prepare import TrainingData, prepare
from anyformer.training.strategies.group import Group


@dataclass(frozen=True, slots=True)
class ResolvedRun:
    """A run that leaves nothing open.

    Attributes:
        config: with tokenizer, model, device and dtype as they were chosen: what config.yaml repeats.
        data: its batches and its tokenizer.
        precision: where it computes and in which dtype.
        compile: compile the stacks.
        compile_reason: why, for people.
    """

    config: CompleteConfig
    data: TrainingData
    precision: Precision
    compile: bool
    compile_reason: str


def check(config: TrainConfig) -> CompleteConfig:
    """Choose what depends on the model alone, and decline what can't work whatever the data and the machine are.

    Raises:
        UserError: fields that contradict each other, or an average, a tracker or an optimizer that can't be had.
    """
    complete = config.complete()
    make_average(complete.average)
    check_trackers(complete.track)
    supports_sharded(complete.optimizer, flattened=complete.engine == "deepspeed")
    return complete


def resolve(config: TrainConfig, group: Group, console: Console) -> ResolvedRun:
    """Choose what is left open, by the model, the machine and the data, which is read and tokenized here.

    All processes get the same.

    Raises:
        UserError: see `check` and `prepare`; a device or dtype that is not to be had.
    """
    complete = check(config)
    found = choose_precision(complete.device, complete.dtype, group.local_rank)
    dtype, reason = group.broadcast((found.dtype, found.reason))
    precision = replace(found, dtype=dtype, reason=reason)
    make_ready(precision)
    compiles, why = choose_compilation(complete.compile, precision.device, spread=group.world_size > 1)
    complete = replace(complete, device=precision.device.type, dtype=precision.name)
    data = group.main_first(lambda: prepare(complete, console))
    return ResolvedRun(data.config, data, precision, compiles, why)
