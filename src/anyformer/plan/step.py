"""Counting one training step: a few layers on tensors without memory, and a line through them for the others."""

import gc
import itertools
from collections import Counter
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from typing_extensions import override

from anyformer.blocks.head import Classifier, LanguageModelHead
from anyformer.data.batch import Batch
from anyformer.model import Transformer
from anyformer.plan.dry_run import heap_size
from anyformer.plan.internals import FakeStore
from anyformer.plan.simulation import PARTS, Simulation, replaced
from anyformer.plan.workload import STACKS, Workload
from anyformer.quantization import parameter_count
from anyformer.training.recipe import make_plan
from anyformer.training.strategies import base
from anyformer.training.strategies.base import Strategy
from anyformer.training.strategies.group import Group

_FIRST_STEP, _SECOND_STEP = range(1), range(1, 2)
"""The steps that are counted: the second one finds the transposes of quantized weights."""
_DRY_RUN = range(1, 12)
"""The heap grows for some steps."""
_FEW_LAYERS = 2
"""Layers of a stack in the smaller of two models on whose line all numbers of more layers are."""
_LAYERS_IN_HEAP = (2, 6)
"""Layers of the two models on whose line it is what the heap adds to larger ones. Six layers take a second or two."""
_BUCKET = 25 << 20
"""Bytes of gradients that DistributedDataParallel exchanges at a time (its bucket_cap_mb)."""
Numbers = dict[str, Counter[str]]
"""All numbers of a step: parameters and FLOPs, bytes by part that stay, and by part at the peak of each phase."""


@dataclass(frozen=True)
class StepCount:
    """Memory and operations of a step, for one process.

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
    """Take the workload's step on tensors without memory, with at most three layers of a stack, four with fsdp.

    All numbers grow linearly with the layers, memory within each phase of the step, so those of deeper models are on
    the line through two layers and three.
    """
    # FSDP gathers the next weights ahead, but for the last ones: one layer more has both sides alike.
    config = workload.config
    # Of layers that share their weights there are as many as blocks, for those that follow add none.
    layers = max(_FEW_LAYERS + (config.engine == "fsdp"), workload.model.distinct_layers or 0)
    few = workload.shorten(layers)
    counted = _SECOND_STEP if config.is_quantized else _FIRST_STEP
    numbers = take_steps(few, counted, Simulation())
    missing = {stack: getattr(workload.model, stack) - layers for stack in STACKS}
    per_layer: dict[int, Numbers] = {}
    for count in {count for count in missing.values() if count > 0}:
        # Stacks that lack as many layers get another one together.
        deeper = {stack: layers + 1 for stack in STACKS if missing[stack] == count}
        more = take_steps(replace(few, model=few.model.replace(**deeper)), counted, Simulation())
        per_layer[count] = {name: _minus(sizes, numbers[name]) for name, sizes in more.items()}

    def shortened(most: int) -> StepCount:
        sums = {name: sizes.copy() for name, sizes in numbers.items()}
        for count, added in per_layer.items():
            for name, sizes in added.items():
                sums[name].update({part: min(count, most - layers) * size for part, size in sizes.items()})
        sizes, resident, *peaks = sums.values()
        peak = max(peaks, key=Counter.total)
        return StepCount(
            parts={part: peak[part] for part in PARTS if peak[part] > 0},
            resident={**resident},
            allocator=0,
            flops=sizes["flops"] * config.processes,
            parameters=(sizes["parameters"], sizes["trained"]),
        )

    deepest = max(getattr(workload.model, stack) for stack in STACKS)
    whole = shortened(deepest)
    if not workload.in_heap:
        return whole
    if deepest <= _LAYERS_IN_HEAP[1]:
        return replace(whole, allocator=_allocator(workload, whole))
    fewer, more = _LAYERS_IN_HEAP
    small, large = (_allocator(workload.shorten(most), shortened(most), dry_runs=1) for most in (fewer, more))
    allocator = large + (large - small) * (deepest - more) // (more - fewer)
    return replace(whole, allocator=max(0, allocator))


def _minus(one: Counter[str], other: Counter[str]) -> Counter[str]:
    """The differences, negative ones among them."""
    return Counter({part: one[part] - other[part] for part in {*one, *other}})


def _allocator(workload: Workload, count: StepCount, dry_runs: int | None = None) -> int:
    """Bytes that the C library's heap takes beyond the tensors of a step."""
    heap = heap_size(partial(take_steps, workload, _DRY_RUN), workload.config.processes, dry_runs)
    return max(0, heap - sum(count.parts.values()))


def take_steps(workload: Workload, counted: range, simulation: Simulation) -> Numbers:
    """Take steps in a simulation.

    Args:
        counted: Numbers of the steps whose memory counts; those before it are taken as well.
    """
    config, batch = workload.config, workload.batch()
    plan = make_plan(config, workload.precision, workload.loss)
    shorter = batch if workload.makes_vectors else _two_parts(batch, config.grad_accumulation)
    if shorter is not batch:
        plan = replace(plan, grad_accumulation=2)
    inputs = replaced(base, model_inputs=partial(_remembered_inputs, simulation))
    with _processes(workload) as make_strategy, inputs, simulation.running():
        model = workload.simulate()
        if isinstance(model.head, LanguageModelHead | Classifier):
            for name in ("loss", "forward", "token_losses"):
                if hasattr(model.head, name):
                    setattr(model.head, name, simulation.part("logits")(getattr(model.head, name)))
        trained = sum(part.numel() for part in model.parameters() if part.requires_grad)
        sizes = Counter({"parameters": parameter_count(model), "trained": trained})
        strategy = make_strategy(model, plan)
        _begin_phases(model, simulation)
        if config.engine == "fsdp":
            gc.collect()  # it lets go of the whole weights, parts of which are in cycles
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(partial(_is_gradient, simulation))
        update = simulation.part("optimizer")(strategy.optimizer.step)

        made = Counter[str]()

        def counted_update() -> None:
            if not counted.start:  # the optimizer makes its state, which all later steps find
                simulation.begin("first update")
                before = simulation.live.copy()
                update()
                made.update(_minus(simulation.live, before))
            simulation.begin("update")
            update()

        strategy.optimizer.step = counted_update  # pyright: ignore[reportAttributeAccessIssue]
        with simulation.part("activations"):
            for number in range(counted.stop):
                if number == counted.start:
                    simulation.restart()  # as a run hands back what loading, quantizing and sharding left behind
                strategy.step(number, shorter, config.learning_rate)
        begun = {phase.name: phase.flops for phase in simulation.phases}
        gradients = begun.get("first update", begun["update"]) * batch.examples / shorter.examples
        sizes["flops"] = round(gradients) + simulation.flops - begun["update"]
        peaks: Numbers = {}
        for number, phase in enumerate(simulation.phases):
            if phase.name != "update":
                phase.peak.update(made)
            if phase.name != "first update":
                peaks[f"{number} {phase.name}"] = phase.peak
        numbers = {"sizes": sizes, "resident": simulation.live.copy(), **peaks}
        del model, strategy, update
    return numbers


def _two_parts(batch: Batch, count: int) -> Batch:
    """Two parts in the place of more, the largest one twice: gradients are there from the second on."""
    if min(count, batch.examples) <= 2:
        return batch
    part = max(batch.split(count), key=lambda part: part.examples)
    arrays = ((field.name, getattr(part, field.name)) for field in fields(part))
    return replace(part, **{name: np.concatenate([rows, rows]) for name, rows in arrays if rows is not None})


def _begin_phases(model: Transformer, simulation: Simulation) -> None:
    """Have a phase of the step begin with a stack's first and last layer, and with the first one's backward pass.

    At the peak of each, memory depends on the number of layers in one way: it rises or falls evenly between them.
    """
    for name, stack in (("encoder", model.encoder), ("decoder", model.decoder)):
        if stack is None:
            continue
        layers = stack.layers
        first, last = layers[0], layers[-1]
        first.register_forward_pre_hook(
            _every(layers.count(first), 0, partial(simulation.begin, f"{name}'s first layer"))
        )
        backward = partial(_begin_backward, simulation, f"{name}'s first layer, backward")
        first.register_forward_hook(_every(layers.count(first), 0, backward))
        if len(layers) > 1:
            begin = partial(simulation.begin, f"{name}'s last layer")
            last.register_forward_pre_hook(_every(layers.count(last), layers.count(last) - 1, begin))


def _every(count: int, number: int, hook: Callable[..., None]) -> Callable[..., None]:
    """A hook for one of each so many calls: a block that several layers share is called as often in a pass."""
    calls = itertools.count()

    def called(*args: Any) -> None:
        if next(calls) % count == number:
            hook(*args)

    return called


def _begin_backward(simulation: Simulation, phase: str, module: nn.Module, args: Any, output: Tensor) -> None:
    """Begin a phase when the backward pass comes to a module's output."""
    del module, args
    if output.requires_grad:
        output.register_hook(partial(simulation.begin, phase))


@contextmanager
def _processes(workload: Workload) -> Generator[Callable[..., Strategy]]:
    """Be the first of as many processes as a workload's config says, the others of which aren't there.

    Yields a function that makes the strategy of its engine.
    """
    group, processes, device = Group(), workload.config.processes, workload.precision.device.type
    if workload.config.engine is None or processes == 1:
        yield partial(Strategy, group=group)
        return
    group.world_size, group.backend = processes, "fake"
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=processes)
    try:
        if workload.config.engine == "ddp":
            yield partial(_Replicated, group=group)
            return
        from anyformer.training.strategies.fsdp import FSDP  # it takes most of a second

        mesh = init_device_mesh(device, (processes,))  # while tensors have memory
        with replaced(FSDP, _flat_mesh=staticmethod(lambda: mesh)):
            yield partial(FSDP, group=group)
    finally:
        dist.destroy_process_group()


class _Replicated(Strategy):
    """DistributedDataParallel without reading its tensors' memory: all gradients are views of its buckets."""

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


def _is_gradient(simulation: Simulation, parameter: Tensor) -> None:
    if parameter.grad is not None:
        grad: Any = parameter.grad
        simulation.assign("gradients", [getattr(grad, "_local_tensor", grad)])


def _remembered_inputs(simulation: Simulation, batch: Batch, device: torch.device) -> dict[str, Tensor]:
    """The tensors of a batch, as `base.model_inputs` makes them, whose data the simulation remembers."""
    del device
    arrays = {field.name: getattr(batch, field.name) for field in fields(batch)}
    with simulation.part("batch"):
        return {name: simulation.remember(array) for name, array in arrays.items() if array is not None}
