"""One training step: the model, the batch and the engine of a run, on tensors with memory or without."""

import gc
from collections import Counter
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from anyformer.adapters import add_adapter
from anyformer.blocks.head import Classifier, LanguageModelHead
from anyformer.blocks.quantized import QuantizedMatrix
from anyformer.config import ModelConfig
from anyformer.data.batch import Batch
from anyformer.finetuning.config import CompleteFinetuneConfig
from anyformer.finetuning.model import train_in_float32
from anyformer.kernels.quantization import GROUP, QuantizedWeight
from anyformer.model import Transformer, build
from anyformer.plan.batches import OBJECTIVES
from anyformer.plan.dry_run import heap_size
from anyformer.plan.simulation import PARTS, Simulation
from anyformer.quantization import bits_per_module, parameter_count, quantizable, quantization, quantize, set_weight
from anyformer.tasks import TASKS
from anyformer.tasks.task import Task
from anyformer.training.config import CompleteConfig
from anyformer.training.losses import LossModule
from anyformer.training.precision import Precision
from anyformer.training.recipe import make_plan
from anyformer.training.strategies import base
from anyformer.training.strategies.base import Strategy
from anyformer.training.strategies.group import Group

_FIRST_STEP, _SECOND_STEP = range(1), range(1, 2)
"""The steps that are counted. The second one finds what DTensor has learned, and transposes of quantized weights."""
_DRY_RUN = range(1, 12)
"""The heap grows for some steps."""
_MOST_LAYERS = 3
"""Layers of a stack with which a step is counted, at most."""
_LAYERS_IN_HEAP = (2, 6)
"""Layers of the two models on whose line it is what the heap adds to larger ones. Six layers take a second or two."""
_STACKS = ("encoder", "decoder")
_FIRST, _MIDDLE, _LAST, _BACKWARD = "first layer", "middle layers", "last layer", ", backward"
_MAKE_STATE, _UPDATE = "make the optimizer's state", "update"
_Numbers = dict[str, Counter[str]]
"""All numbers of a step: those of the step itself, bytes by part that stay, and by part at the peak of each phase."""


@dataclass(frozen=True, kw_only=True)
class Workload:
    """The workload of a step.

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

    @property
    def tuned(self) -> Task | None:
        """The task of fine-tuning; None: the model is trained on text."""
        return TASKS[self.config.task] if isinstance(self.config, CompleteFinetuneConfig) else None

    @property
    def makes_vectors(self) -> bool:
        """Whether each example is compared with all others of its batch, which can't be counted in parts then."""
        return self.tuned is not None and self.tuned.makes_vectors

    def change(self, **changes: Any) -> "Workload":
        """The workload with other fields of the config."""
        return replace(self, config=replace(self.config, **changes))

    def shorten(self, layers: int) -> "Workload":
        """The workload with at most so many layers in each stack."""
        stacks = ("encoder_layers", "decoder_layers")
        fewer: dict[str, Any] = {name: min(getattr(self.model, name), layers) for name in stacks}
        if 0 < self.model.attention.window_from < self.model.decoder_layers:
            fewer["attention"] = {"window_from": 1}
        return replace(self, model=self.model.replace(**fewer))

    def batch(self) -> Batch:
        """A batch of random tokens."""
        rng = np.random.default_rng(self.config.seed)
        make = OBJECTIVES[self.task] if self.tuned is None else self.tuned.random_batch or OBJECTIVES[self.task]
        return make(self.config, self.model, rng)

    def loss(self, model: Transformer) -> nn.Module:
        """The module that computes the loss."""
        return LossModule(model) if self.tuned is None else self.tuned.loss(model, self.config)

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
        config = self.config
        if isinstance(config, CompleteFinetuneConfig) and config.adapter is not None:
            for parameter in model.parameters():
                parameter.data = parameter.data.to(getattr(torch, config.base_dtype))
            add_adapter(model, config.adapter)
            train_in_float32(model)
        if self.makes_vectors and model.encoder is not None and model.decoder is not None:
            model.decoder.requires_grad_(False)
        return model


def _empty_weight(rows: int, columns: int, bits: int) -> QuantizedWeight:
    scales = torch.empty(rows, columns // GROUP, dtype=torch.float16)
    if bits == 8:
        return QuantizedWeight(torch.empty(rows, columns, dtype=torch.int8), scales, None)
    return QuantizedWeight(torch.empty(rows, columns // 2, dtype=torch.uint8), scales, torch.empty_like(scales))


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
    """Take the workload's step on tensors without memory, with three layers in the place of more.

    All numbers grow linearly with the layers, memory within each phase of the step.
    """
    layers = {stack: getattr(workload.model, f"{stack}_layers") for stack in _STACKS}
    # FSDP gathers the next weights ahead, but for the last ones: one layer more has both sides alike.
    few = workload.shorten(_MOST_LAYERS + (workload.config.engine == "fsdp"))
    numbers, per_layer = _trace(few)

    def shortened(most: int) -> StepCount:
        found = {name: sizes.copy() for name, sizes in numbers.items()}
        for stack, added in per_layer.items():
            missing = min(most, layers[stack]) - getattr(few.model, f"{stack}_layers")
            for name, sizes in added.items():
                found[name].update({part: missing * size for part, size in sizes.items()})
        return _step_count(found, workload.config.processes)

    deepest = max(layers.values())
    whole = shortened(deepest)
    if not workload.in_heap:
        return whole
    if deepest <= _LAYERS_IN_HEAP[1]:
        return replace(whole, allocator=_allocator(workload, whole))
    fewer, more = _LAYERS_IN_HEAP
    small, large = (_allocator(workload.shorten(most), shortened(most), dry_runs=1) for most in (fewer, more))
    allocator = large + (large - small) * (deepest - more) // (more - fewer)
    return replace(whole, allocator=max(0, allocator))


def _trace(workload: Workload) -> tuple[_Numbers, dict[str, _Numbers]]:
    """Take a step with all layers; returns its numbers, and what another layer adds to them, by stack.

    Another layer is one more before the last but one: it has that one's weights and state, and what that keeps from its
    forward to its backward pass, and gradients from there on.
    """
    simulation, config = Simulation(), workload.config
    takes_two = config.engine == "fsdp" or config.is_quantized
    step, layers = _take(workload, _SECOND_STEP if takes_two else _FIRST_STEP, simulation)
    *phases, end = simulation.phases
    numbers: _Numbers = {"step": step, "resident": end.begin}
    per_layer: dict[str, _Numbers] = {
        stack: {"step": sizes, "resident": resident} for stack, (sizes, resident) in layers.items()
    }
    held = {stack: Counter[str]() for stack in per_layer}
    made = _minus(end.begin, phases[0].begin)  # by this step, and there from the beginning of all others
    update_flops = 0
    for number, phase in enumerate(phases):
        following = simulation.phases[number + 1]
        passed, flops = _minus(following.begin, phase.begin), following.flops - phase.flops
        if phase.name in (_MAKE_STATE, _UPDATE):
            step["flops"] -= flops
            update_flops = flops
        if phase.name == _MAKE_STATE:
            made = _minus(made, passed)
            continue
        name = f"{number} {phase.name}"
        numbers[name] = Counter(phase.peak)
        numbers[name].update(made)
        for stack, added in per_layer.items():
            middle = phase.name.startswith(f"{stack}'s {_MIDDLE}")
            if middle:
                added["step"]["flops"] += flops
            if middle and not phase.name.endswith(_BACKWARD):
                held[stack].update(passed)
            added[name] = Counter(added["resident"])
            added[name].update(held[stack])
            if middle and phase.name.endswith(_BACKWARD):
                held[stack].update(passed)
    share = step["examples"] / step["counted examples"]
    for sizes in (step, *(added["step"] for added in per_layer.values())):
        sizes["flops"] = round(sizes["flops"] * share)
        own = step["trained in layers"] if sizes is step else sizes["trained"]
        sizes["flops"] += update_flops * own // max(1, step["trained in layers"])
    return numbers, per_layer


def _minus(one: Counter[str], other: Counter[str]) -> Counter[str]:
    """The differences, negative ones among them."""
    return Counter({part: one[part] - other[part] for part in {*one, *other}})


def _step_count(numbers: _Numbers, processes: int) -> StepCount:
    step, resident, *phases = numbers.values()
    peak = max(phases, key=Counter.total)
    parts = {name: peak[name] for name in PARTS if peak[name] > 0}
    sizes = step["parameters"], step["trained"]
    return StepCount(parts, {**resident}, 0, step["flops"] * processes, sizes)


def _allocator(workload: Workload, count: StepCount, dry_runs: int | None = None) -> int:
    """Bytes that the C library's heap takes beyond the tensors of a step."""
    heap = heap_size(partial(_take, workload, _DRY_RUN), workload.config.processes, dry_runs)
    return max(0, heap - sum(count.parts.values()))


def _take(
    workload: Workload, counted: range, simulation: Simulation
) -> tuple[Counter[str], dict[str, tuple[Counter[str], Counter[str]]]]:
    """Take steps in a simulation.

    Args:
        counted: numbers of the steps whose memory counts; those before it are taken as well.

    Returns:
        Operations, parameters and examples of a step; and of the last layer but one of each stack its parameters, and
        the bytes by part that stay.
    """
    config, batch = workload.config, workload.batch()
    plan = make_plan(config, workload.precision, workload.loss)
    alike = batch if workload.makes_vectors else _two_parts(batch, config.grad_accumulation)
    if alike is not batch:
        plan = replace(plan, grad_accumulation=2)
    with _processes(config, workload.precision) as make_strategy, _inputs(simulation), simulation.running():
        model = workload.simulate()
        if isinstance(model.head, LanguageModelHead | Classifier):
            for name in ("loss", "forward"):
                if hasattr(model.head, name):
                    setattr(model.head, name, simulation.within("logits", getattr(model.head, name)))
        sizes, stacks = _sizes(model), {name: getattr(model, name) for name in _STACKS}
        sizes["trained in layers"] = sum(_sizes(stack.blocks)["trained"] for stack in stacks.values() if stack)
        seconds = {name: stack.blocks[-2] for name, stack in stacks.items() if stack and len(stack.blocks) > 2}
        layers = {name: _sizes(block) for name, block in seconds.items()}
        strategy = make_strategy(model, plan)
        _tell_phases(stacks, simulation)
        if config.engine == "fsdp":
            gc.collect()  # it lets go of the whole weights, parts of which are in cycles
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(partial(_is_gradient, simulation))
        update = simulation.within("optimizer", strategy.optimizer.step)

        def updates() -> None:
            for phase in (_UPDATE,) if counted.start else (_MAKE_STATE, _UPDATE):
                simulation.begin(phase)
                update()

        strategy.optimizer.step = updates  # pyright: ignore[reportAttributeAccessIssue]
        with simulation.part("activations"):
            for number in range(counted.stop):
                if number == counted.start:
                    simulation.restart()  # as a run hands back what loading, quantizing and sharding left behind
                strategy.step(number, alike, config.learning_rate)
        simulation.begin("end")
        step = sizes + Counter(
            {"flops": simulation.flops, "examples": batch.examples, "counted examples": alike.examples}
        )
        stays = {
            name: (layers[name], _resident(block, layers[name]["trained"] / sizes["trained"], strategy, simulation))
            for name, block in seconds.items()
        }
        del model, strategy, stacks, seconds, update, updates
    return step, stays


def _resident(block: nn.Module, share: float, strategy: Strategy, simulation: Simulation) -> Counter[str]:
    """Bytes by part that stay of a block between two steps.

    Args:
        share: of all that is trained.
    """
    parameters = [*block.parameters()]
    state = (part for each in parameters for part in strategy.optimizer.state.get(each, {}).values())
    stored = (getattr(part, "_local_tensor", part) for part in (*parameters, *block.buffers(), *state))
    found = simulation.sizes([*stored, *_transposes(block)])
    shared = _minus(simulation.live, simulation.sizes(_transposes(strategy.model)))
    for part in ("gradients", "activations"):  # buckets and averages of what is trained
        found[part] += round(share * shared[part])
    return found


def _transposes(module: nn.Module) -> Generator[Tensor]:
    """The parts of the cached transposes of quantized weights."""
    for each in module.modules():
        if isinstance(each, QuantizedMatrix) and each.cached_transpose is not None:
            yield from (part for part in each.cached_transpose if part is not None)


def _two_parts(batch: Batch, count: int) -> Batch:
    """Two parts in the place of more, the largest one twice: gradients are there from the second on."""
    if min(count, batch.examples) <= 2:
        return batch
    part = max(batch.split(count), key=lambda part: part.examples)
    given = ((field.name, getattr(part, field.name)) for field in fields(part))
    return replace(part, **{name: np.concatenate([rows, rows]) for name, rows in given if rows is not None})


def _tell_phases(stacks: Mapping[str, Any], simulation: Simulation) -> None:
    """Have a phase of the step begin where a stack's first, last and last layer but one begin, forward and backward.

    At the peak of each, memory depends on the number of layers in one way.
    """
    for name, stack in stacks.items():
        blocks = [*stack.blocks] if stack else []
        last = len(blocks) - 1
        forward, backward = {last - 1: _MIDDLE, last: _LAST, 0: _FIRST}, {last - 1: _MIDDLE, last - 2: _FIRST}
        for number, block in enumerate(blocks):
            if number in forward:
                begin = partial(simulation.begin, f"{name}'s {forward[number]}")
                block.register_forward_pre_hook(_hook(begin))
            if number in backward:
                begin = partial(simulation.begin, f"{name}'s {backward[number]}{_BACKWARD}")
                block.register_forward_hook(_backward_hook(begin))


def _hook(function: Callable[[], None]) -> Callable[..., None]:
    """A hook that calls a function without arguments."""

    def hook(*_: Any) -> None:
        function()

    return hook


def _backward_hook(function: Callable[[], None]) -> Callable[..., None]:
    """A hook of a module that calls a function when the backward pass comes to its output."""

    def hook(*given: Any) -> None:
        if given[-1].requires_grad:
            given[-1].register_hook(_hook(function))

    return hook


@contextmanager
def _processes(
    config: CompleteConfig | CompleteFinetuneConfig, precision: Precision
) -> Generator[Callable[..., Strategy]]:
    """In here there are as many processes, for whose engine a strategy can be made."""
    if config.engine is None or config.processes == 1:
        yield partial(Strategy, group=Group())
        return
    from anyformer.plan.engines import fake_group, make_strategy

    with fake_group(config.processes, precision.device.type) as (group, mesh):
        yield partial(make_strategy, config.engine, group=group, mesh=mesh)


def _sizes(module: nn.Module) -> Counter[str]:
    trained = sum(part.numel() for part in module.parameters() if part.requires_grad)
    return Counter({"parameters": parameter_count(module), "trained": trained})


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
