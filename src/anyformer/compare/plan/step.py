"""One training step: the model, the batch and the engine of a run, on tensors with memory or without."""

import gc
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from typing_extensions import override

from anyformer.adapters import add_adapter
from anyformer.blocks.head import Classifier, LanguageModelHead
from anyformer.compare.plan.batches import random_batch
from anyformer.compare.plan.dry_run import heap_size
from anyformer.compare.plan.internals import FakeStore
from anyformer.compare.plan.simulation import Simulation
from anyformer.config import ModelConfig
from anyformer.data.batch import Batch
from anyformer.finetuning.config import CompleteFinetuneConfig
from anyformer.kernels.quantization import GROUP, QuantizedWeight
from anyformer.model import Transformer, build
from anyformer.quantization import bits_per_module, quantizable, quantization, quantize, set_weight
from anyformer.training.config import CompleteConfig
from anyformer.training.losses import EmbeddingLoss, LossModule, PreferenceLoss
from anyformer.training.precision import Precision
from anyformer.training.resolve import make_plan
from anyformer.training.strategies import base
from anyformer.training.strategies.base import Strategy
from anyformer.training.strategies.fsdp import FSDP
from anyformer.training.strategies.group import Group

_COUNTED = range(1, 2)
"""The second step: the optimizer's state exists, and DTensor has learned the shapes of results from whole tensors."""
_DRY_RUN = range(1, 12)
"""The heap grows for some steps."""
_BUCKET = 25 << 20
"""Bytes of gradients that DistributedDataParallel exchanges at a time (its bucket_cap_mb)."""


@dataclass(frozen=True, kw_only=True)
class Workload:
    """What is trained.

    Attributes:
        model: with the head of the task.
        config: of a run of `train` or `finetune`, which leaves nothing open but the data.
        task: an objective of training or a task of fine-tuning: the key of a batch's shape.
        precision: in which dtype; tensors are counted as a CPU's.
        in_heap: whether they are in the C library's heap, as a CPU's are.
    """

    model: ModelConfig
    config: CompleteConfig | CompleteFinetuneConfig
    task: str
    precision: Precision
    in_heap: bool = True

    def change(self, **changes: Any) -> "Workload":
        """The same with other fields of the config."""
        return replace(self, config=replace(self.config, **changes))

    def shorten(self, layers: int) -> "Workload":
        """The same with at most so many layers in each stack."""
        stacks = ("encoder_layers", "decoder_layers")
        fewer = {name: min(getattr(self.model, name), layers) for name in stacks}
        return replace(self, model=self.model.replace(**fewer))

    def batch(self) -> Batch:
        """A batch of random tokens."""
        return random_batch(self.task, self.config, self.model)

    def loss(self, model: Transformer) -> nn.Module:
        """The module that computes the loss."""
        if self.task == "preference":
            return PreferenceLoss(model)
        if self.task == "embed":
            return EmbeddingLoss(model, getattr(self.config, "loss", None) or "in_batch_negatives")
        return LossModule(model)

    def simulate(self) -> Transformer:
        """The model as it is when training begins, without numbers in its weights."""
        model = Transformer(self.model, initialize=False)
        kind = getattr(self.config, "quantize", None)
        if kind is not None:
            modules = quantizable(model)
            for name, bits in bits_per_module(model, quantization(kind)).items():
                rows, columns = modules[name].weight.shape
                set_weight(model, name, _empty_weight(rows, columns, bits), torch.float32)
        return self.fit(model)

    def draw(self) -> Transformer:
        """The model with weights, as they are drawn."""
        model, kind = build(self.model), getattr(self.config, "quantize", None)
        return self.fit(model if kind is None else quantize(model, kind))

    def fit(self, model: Transformer) -> Transformer:
        """The model with an adapter, where one is trained, and without gradients of what the loss does not reach."""
        adapter = self.config.adapter if isinstance(self.config, CompleteFinetuneConfig) else None
        if adapter is not None:
            add_adapter(model, adapter)
        if self.task == "embed" and model.encoder is not None and model.decoder is not None:
            model.decoder.requires_grad_(False)
        return model


def _empty_weight(rows: int, columns: int, bits: int) -> QuantizedWeight:
    scales = torch.empty(rows, columns // GROUP, dtype=torch.float16)
    if bits == 8:
        return QuantizedWeight(torch.empty(rows, columns, dtype=torch.int8), scales, None)
    return QuantizedWeight(torch.empty(rows, columns // 2, dtype=torch.uint8), scales, torch.empty_like(scales))


@dataclass(frozen=True)
class StepCount:
    """What a step takes, of one process.

    Attributes:
        parts: bytes by part when they are most in all.
        resident: bytes by part that stay between two steps.
        allocator: bytes that the C library's heap takes beyond them, on a CPU.
        flops: of all processes together.
        parameters: of the model, and those that are trained.
    """

    parts: dict[str, int]
    resident: dict[str, int]
    allocator: int
    flops: int
    parameters: tuple[int, int]

    @property
    def peak(self) -> int:
        """Bytes in all."""
        return sum(self.parts.values()) + self.allocator


def count_step(workload: Workload) -> StepCount:
    """Take the workload's step on tensors without memory."""
    simulation = Simulation()
    sizes, resident = _take(workload, _COUNTED, simulation)
    parts = {name: size for name, size in simulation.peak.items() if size}
    allocator = 0
    if workload.in_heap:
        heap = heap_size(partial(_take, workload, _DRY_RUN), workload.config.processes)
        allocator = max(0, heap - sum(parts.values()))
    flops = simulation.flops * workload.config.processes
    return StepCount(parts, resident, allocator, flops, sizes)


def _take(workload: Workload, counted: range, simulation: Simulation) -> tuple[tuple[int, int], dict[str, int]]:
    """Take steps in a simulation; returns the numbers of parameters, and the bytes that stay, by part.

    Args:
        counted: numbers of the steps whose memory counts; those before it are taken as well.
    """
    config = workload.config
    with _group(config.processes) as group, _inputs(simulation):
        mesh = init_device_mesh(workload.precision.device.type, (config.processes,)) if group.backend else None
        with simulation.running():
            model = workload.simulate()
            sizes = _sizes(model)
            if isinstance(model.head, LanguageModelHead | Classifier):
                for name in ("loss", "forward"):
                    if hasattr(model.head, name):
                        setattr(model.head, name, simulation.within("logits", getattr(model.head, name)))
            plan = make_plan(config, workload.precision, workload.loss)
            strategy = _strategy(config.engine, model, plan, group, mesh)
            gc.collect()  # FSDP lets go of the whole weights, parts of which are in cycles
            trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
            for parameter in trained:
                parameter.register_post_accumulate_grad_hook(partial(_is_gradient, simulation))
            strategy.optimizer.step = simulation.within("optimizer", strategy.optimizer.step)  # pyright: ignore[reportAttributeAccessIssue]
            batch = workload.batch()
            with simulation.part("activations"):
                for number in range(counted.stop):
                    simulation.flops = 0
                    if number == counted.start:
                        simulation.restart()  # as a run hands back what loading, quantizing and sharding left behind
                    strategy.step(number, batch, config.learning_rate)
            resident = dict(simulation.live)
            del model, strategy, trained
    return sizes, resident


def _sizes(model: Transformer) -> tuple[int, int]:
    counts = [(parameter.numel(), parameter.requires_grad) for parameter in model.parameters()]
    return sum(count for count, _ in counts), sum(count for count, trained in counts if trained)


def _is_gradient(simulation: Simulation, parameter: Tensor) -> None:
    if parameter.grad is not None:
        grad: Any = parameter.grad
        simulation.assign("gradients", [getattr(grad, "_local_tensor", grad)])


@contextmanager
def _inputs(simulation: Simulation) -> Generator[None]:
    """In here the tensors of a batch are known to the simulation."""
    real = base.model_inputs

    def known(batch: Batch, device: torch.device) -> dict[str, Tensor]:
        del device
        arrays = {field.name: getattr(batch, field.name) for field in fields(batch)}
        with simulation.part("batch"):
            return {name: simulation.known(array) for name, array in arrays.items() if array is not None}

    base.model_inputs = known
    try:
        yield
    finally:
        base.model_inputs = real


class _Alone(Group):
    """The first of several processes, the others of which aren't there."""

    def __init__(self, processes: int) -> None:
        super().__init__()
        if processes > 1:
            self.world_size, self.backend = processes, "fake"
            dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=processes)


@contextmanager
def _group(processes: int) -> Generator[Group]:
    group = _Alone(processes)
    try:
        yield group
    finally:
        if group.backend:
            dist.destroy_process_group()


def _strategy(engine: str | None, model: Transformer, plan: Any, group: Group, mesh: DeviceMesh | None) -> Strategy:
    if engine == "fsdp":
        assert mesh is not None
        return _Sharded(model, plan, group, mesh)
    return (_Replicated if engine == "ddp" else Strategy)(model, plan, group)


class _Sharded(FSDP):
    """FSDP, whose mesh was made while tensors had memory."""

    def __init__(self, model: Transformer, plan: Any, group: Group, mesh: DeviceMesh) -> None:
        self._made = mesh
        super().__init__(model, plan, group)

    @override
    def _mesh(self) -> DeviceMesh:
        return self._made


class _Replicated(Strategy):
    """What DistributedDataParallel, which reads its tensors' memory, does: all gradients are views of its buckets."""

    @override
    def _wrap(self) -> nn.Module:
        groups: list[list[nn.Parameter]] = [[]]
        for parameter in reversed([*self.model.parameters()]):
            if parameter.requires_grad:
                if sum(each.nbytes for each in groups[-1]) >= _BUCKET:
                    groups.append([])
                groups[-1].append(parameter)
        for group in groups:
            bucket = torch.empty(sum(parameter.numel() for parameter in group))
            for parameter, part in zip(group, bucket.split([each.numel() for each in group]), strict=True):
                is_last = parameter is group[-1]
                move = partial(_move, part.view_as(parameter), bucket if is_last else None)
                parameter.register_post_accumulate_grad_hook(move)
        return super()._wrap()


def _move(grad: Tensor, full: Tensor | None, parameter: Tensor) -> None:
    """Give a parameter its part of a bucket, which is exchanged when it is full."""
    parameter.grad = grad
    if full is not None:
        dist.all_reduce(full)
