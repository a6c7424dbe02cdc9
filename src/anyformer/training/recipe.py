"""Recipes of runs, and the choices that a run leaves open, made and checked in one place.

A recipe says where the model comes from, on which batches it trains, and how it is saved and shown.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar, cast

from torch import nn

from anyformer.blocks.initialization import Cut
from anyformer.checkpoint import load
from anyformer.config import ModelConfig
from anyformer.console import Console
from anyformer.fastest_dtype import Products, products
from anyformer.model import Transformer
from anyformer.runs.listing import Terms
from anyformer.runs.tracking import check as check_trackers
from anyformer.training.averaging import make_average
from anyformer.training.batcher import Batcher
from anyformer.training.config import ONE_PROCESS, CompleteRunConfig, RunConfig
from anyformer.training.losses import LossModule
from anyformer.training.optimizer import make_optimizer
from anyformer.training.precision import Precision, choose_compilation, choose_device, choose_precision
from anyformer.training.sample import Sample
from anyformer.training.strategies.base import DDP, Plan, Strategy
from anyformer.training.strategies.group import Group
from anyformer.training.strategies.launch import check_engine

_Config = TypeVar("_Config", bound=CompleteRunConfig)


class Recipe(ABC, Generic[_Config]):
    """The part of a run that the training loop does not know: its model, its batches, their use.

    Attributes:
        config: the config of the run: what config.yaml repeats. It leaves nothing open, once `resolve` chose the dtype.
        command: the subcommand that starts and resumes such runs.
        config_type: the kind of config that describes one.
        model_config: the config of the model that is trained.
        fingerprint: of all that decides the batches: a run can be resumed only on the same.
        head_is_new: whether a head was drawn for a trained model, whose answers before training are noise.
        base_fingerprint: of the model that it begins with, likewise; None: its first weights are drawn.
    """

    command: ClassVar[str]
    config_type: ClassVar[type[RunConfig]]
    config: _Config
    name: str
    model_config: ModelConfig
    batches: Batcher
    fingerprint: str
    base_fingerprint: str | None = None
    head_is_new: bool = False

    @property
    def fingerprints(self) -> dict[str, str | None]:
        """The fingerprints by name, as checkpoints have them."""
        return {"fingerprint": self.fingerprint, "base_fingerprint": self.base_fingerprint}

    @property
    def terms(self) -> Terms:
        """The run's terms on pages."""
        return Terms()

    @property
    def products(self) -> Products:
        """The matrix products of a step, by which the dtype is chosen."""
        return step_products(self.model_config, self.config)

    @abstractmethod
    def build(self, cut: Cut | None = None) -> Transformer:
        """The model with its first weights, the same on all processes.

        Args:
            cut: what this process keeps of a weight, where it can; None: all of it.
        """

    def loss(self, model: Transformer) -> nn.Module:
        """The module that computes the loss of a batch."""
        return LossModule(model)

    def prepare(self, strategy: Strategy) -> None:
        """Compute with the first weights what training needs; all processes call it."""

    @abstractmethod
    def summary(self) -> Sequence[str]:
        """Lines on the data, for people."""

    @abstractmethod
    def save(self, model: Transformer, directory: Path) -> str:
        """Write the model; returns what the directory is, for people. Raises UserError where the disk refuses.

        Where the model is spread over processes, all of them call it.
        """

    def load(self, directory: Path) -> Transformer:
        """Load what `save` wrote. Raises UserError where it is damaged."""
        return load(directory)[0]

    def measure(self, model: Transformer, directory: Path, step: int) -> Mapping[str, Any]:
        """Measure the model before training, at step 0, and after it, in the first process only.

        Returns figures to log beside its validation loss. More may be written into the run directory.
        """
        return {}

    @abstractmethod
    def sample(self, model: Transformer) -> Sample:
        """Generate samples that show what the model has learned."""

    def report(self, directory: Path) -> Sequence[str]:
        """Write about the finished run into its directory, and return lines for people."""
        return ()


Prepare = Callable[[Any, Console], Recipe[Any]]


@dataclass(frozen=True, slots=True)
class ResolvedRun:
    """A run that leaves nothing open.

    Attributes:
        recipe: its model, its batches, and its config as config.yaml repeats it.
        plan: how a step is taken, where and in which dtype.
        compile_reason: why it is compiled, or is not, for people.
    """

    recipe: Recipe[Any]
    plan: Plan
    compile_reason: str


def resolve(config: RunConfig, recipe: Prepare, group: Group, console: Console) -> ResolvedRun:
    """Choose what is left open, by the model, the machine and the data, which is read and tokenized here.

    All processes get the same.

    Raises:
        UserError: fields that contradict each other; an average, a tracker, an optimizer, a device or a dtype that
            can't be had; data that is missing or does not suit the model.
    """
    make_average(config.average)  # refuses before the data is read
    check_trackers(config.track)
    name = "xla" if config.engine in ONE_PROCESS else config.device
    device = choose_device(name, config.dtype, group.local_rank)
    compiles, compile_reason = choose_compilation(config.compile, device, distributed=group.world_size > 1)
    # XLA's device comes with its engine: another engine goes on elsewhere.
    config = replace(config, device=None if device.type == "xla" else device.type)
    resolved = group.main_first(lambda: recipe(config, console))
    chosen = None
    if group.is_main:
        chosen = choose_precision(device, config.dtype, lambda: resolved.products, quantized=config.is_quantized)
    precision = replace(cast("Precision", group.broadcast(chosen)), device=device)
    resolved.config = replace(resolved.config, dtype=precision.name)
    plan = make_plan(resolved.config, precision, resolved.loss, compiles=compiles)
    return ResolvedRun(resolved, plan, compile_reason)


def step_products(model: ModelConfig, config: CompleteRunConfig) -> Products:
    """The matrix products of a step of a run on one process; all texts count as long as the context."""
    return products(model, max(1, config.tokens_per_step // config.processes // config.grad_accumulation))


def make_plan(
    config: CompleteRunConfig,
    precision: Precision,
    loss: Callable[[Transformer], nn.Module] = LossModule,
    *,
    compiles: bool = False,
) -> Plan:
    """The plan of a run's steps. Raises UserError for an average or an optimizer that can't be had."""
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


def cut_of(
    name: str | None, plan: Plan, group: Group, *, tensor_parallel: int = 1, context_parallel: int = 1
) -> Cut | None:
    """The cut of each weight that a process of an engine draws or reads; None: it begins with all of it.

    Arguments and errors are `make_strategy`'s.
    """
    check_engine(name, group.world_size, tensor_parallel, context_parallel)
    if name != "fsdp":
        return None
    from anyformer.training.strategies.fsdp import cut

    return cut(plan.precision.device.type, group.world_size)


def make_strategy(
    name: str | None,
    model: Transformer,
    plan: Plan,
    group: Group,
    *,
    zero_stage: int = 2,
    tensor_parallel: int = 1,
    context_parallel: int = 1,
) -> Strategy:
    """The strategy of an engine, which is one of ENGINES; None: a single process.

    Args:
        model: with its first weights, the same on all processes.
        zero_stage: DeepSpeed's: 1 shards the optimizer's state, 2 the gradients as well, 3 the weights as well.
        tensor_parallel: FSDP's: processes that share the matrices of each layer.
        context_parallel: FSDP's: processes that share each sequence.

    Raises:
        UserError: there is no such engine, it isn't installed, or it does not fit the number of processes.
    """
    check_engine(name, group.world_size, tensor_parallel, context_parallel)
    if name == "ddp":
        return DDP(model, plan, group)
    # Both import a library that takes seconds to load and that the others have no use for.
    if name == "fsdp":
        from anyformer.training.strategies.fsdp import FSDP

        return FSDP(model, plan, group, tensor_parallel=tensor_parallel, context_parallel=context_parallel)
    if name == "deepspeed":
        from anyformer.training.strategies.deepspeed import DeepSpeed

        return DeepSpeed(model, plan, group, zero_stage)
    if name in ONE_PROCESS:
        from anyformer.training.strategies.xla import XLA

        return XLA(model, plan, group, shard=name == "xla")
    return Strategy(model, plan, group)
