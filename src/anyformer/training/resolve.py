"""Every choice that a run leaves open, made and checked in one place."""

from dataclasses import dataclass, replace
from functools import partial

from anyformer.console import Console
from anyformer.runs.tracking import check as check_trackers
from anyformer.training.averaging import make_average
from anyformer.training.config import CompleteConfig, TrainConfig
from anyformer.training.optimizer import make_optimizer
from anyformer.training.precision import choose_compilation, choose_precision, start_compiler
from anyformer.training.prepare import TrainingData, prepare
from anyformer.training.strategies.base import Plan
from anyformer.training.strategies.group import Group


@dataclass(frozen=True, slots=True)
class ResolvedRun:
    """A run that leaves nothing open.

    Attributes:
        config: with tokenizer, model, device and dtype as they were chosen: what config.yaml repeats.
        data: its batches and its tokenizer.
        plan: how a step is taken, where and in which dtype.
        compile_reason: why it is compiled, or is not, for people.
    """

    config: CompleteConfig
    data: TrainingData
    plan: Plan
    compile_reason: str


def resolve(config: TrainConfig, group: Group, console: Console) -> ResolvedRun:
    """Choose what is left open, by the model, the machine and the data, which is read and tokenized here.

    All processes get the same.

    Raises:
        UserError: fields that contradict each other; an average, a tracker, an optimizer, a device or a dtype that
            can't be had; data that is missing or does not suit the model (see `prepare`).
    """
    complete = config.complete()
    average = make_average(complete.average)
    check_trackers(complete.track)
    found = choose_precision(complete.device, complete.dtype, group.local_rank)
    dtype, reason = group.broadcast((found.dtype, found.reason))
    precision = replace(found, dtype=dtype, reason=reason)
    start_compiler(precision)
    compiles, compile_reason = choose_compilation(complete.compile, precision.device, distributed=group.world_size > 1)
    complete = replace(complete, device=precision.device.type, dtype=precision.name)
    data = group.main_first(lambda: prepare(complete, console))
    optimizer = partial(
        make_optimizer,
        complete.optimizer,
        learning_rate=complete.learning_rate,
        weight_decay=complete.weight_decay,
        betas=(0.9, complete.beta2),
        dtype=precision.dtype,
    )
    plan = Plan(
        precision,
        optimizer,
        average,
        grad_clip=complete.grad_clip,
        grad_accumulation=complete.grad_accumulation,
        label_smoothing=complete.label_smoothing,
        seed=complete.seed,
        compile=compiles,
        gradient_checkpointing=complete.gradient_checkpointing,
    )
    return ResolvedRun(data.config, data, plan, compile_reason)
