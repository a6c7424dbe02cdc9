"""Every choice that a run leaves open, made and checked in one place."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from torch import nn

from anyformer.console import Console
from anyformer.model import Transformer
from anyformer.runs.tracking import check as check_trackers
from anyformer.training.averaging import make_average
from anyformer.training.losses import LossModule
from anyformer.training.optimizer import make_optimizer
from anyformer.training.precision import Precision, choose_compilation, choose_precision, start_compiler
from anyformer.training.recipe import Recipe
from anyformer.training.run_config import CompleteRunConfig, RunConfig
from anyformer.training.strategies.base import Plan, Strategy
from anyformer.training.strategies.group import Group
from anyformer.training.strategies.launch import check_engine

Prepare = Callable[[Any, Console], Recipe]


@dataclass(frozen=True, slots=True)
class ResolvedRun:
    """A run that leaves nothing open.

    Attributes:
        recipe: its model, its batches, and its config as config.yaml repeats it.
        plan: how a step is taken, where and in which dtype.
        compile_reason: why it is compiled, or is not, for people.
    """

    recipe: Recipe
    plan: Plan
    compile_reason: str


def resolve(config: RunConfig, recipe: Prepare, group: Group, console: Console) -> ResolvedRun:
    """Choose what is left open, by the model, the machine and the data, which is read and tokenized here.

    All processes get the same.

    Args:
        recipe: makes the recipe from the config.

    Raises:
        UserError: fields that contradict each other; an average, a tracker, an optimizer, a device or a dtype that
            can't be had; data that is missing or does not suit the model.
    """
    make_average(config.average)  # refuses before the data is read
    check_trackers(config.track)
    found = choose_precision(config.device, config.dtype, group.local_rank, quantized=config.is_quantized)
    dtype, reason = group.broadcast((found.dtype, found.reason))
    precision = replace(found, dtype=dtype, reason=reason)
    start_compiler(precision)
    compiles, compile_reason = choose_compilation(config.compile, precision.device, distributed=group.world_size > 1)
    settled = replace(config, device=precision.device.type, dtype=precision.name)
    made = group.main_first(lambda: recipe(settled, console))
    complete = made.config
    plan = make_plan(complete, precision, made.loss, compiles=compiles)
    return ResolvedRun(made, plan, compile_reason)


def make_plan(
    config: CompleteRunConfig,
    precision: Precision,
    loss: Callable[[Transformer], nn.Module] = LossModule,
    *,
    compiles: bool = False,
) -> Plan:
    """How a run with this config takes a step. Raises UserError for an average or an optimizer that can't be had."""
    return Plan(
        precision,
        partial(
            make_optimizer,
            config.optimizer,
            learning_rate=config.learning_rate,
            weight_decay=config.weight_decay,
            betas=(0.9, config.beta2),
            dtype=precision.dtype,
        ),
        make_average(config.average),
        grad_clip=config.grad_clip,
        grad_accumulation=config.grad_accumulation,
        label_smoothing=config.label_smoothing,
        seed=config.seed,
        compile=compiles,
        gradient_checkpointing=config.gradient_checkpointing,
        loss=loss,
    )


def make_strategy(name: str | None, model: Transformer, plan: Plan, group: Group, *, zero_stage: int = 2) -> Strategy:
    """The strategy of an engine.

    Args:
        name: one of ENGINES; None: a single process.
        model: with its first weights, the same on all processes.
        zero_stage: what DeepSpeed shards: 1 the optimizer's state, 2 the gradients as well, 3 the weights as well.

    Raises:
        UserError: there is no such engine, it isn't installed, or it does not fit the number of processes.
    """
    check_engine(name, group.world_size)
    # Each imports a library that takes seconds to load and that the others have no use for.
    if name == "ddp":
        from anyformer.training.strategies.ddp import DDP

        return DDP(model, plan, group)
    if name == "fsdp":
        from anyformer.training.strategies.fsdp import FSDP

        return FSDP(model, plan, group)
    if name == "deepspeed":
        from anyformer.training.strategies.deepspeed import DeepSpeed

        return DeepSpeed(model, plan, group, zero_stage)
    return Strategy(model, plan, group)
