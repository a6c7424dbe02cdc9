"""What training takes: counted on tensors without memory, timed by real steps or by a device's peak."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from anyformer.analysis import cache_bytes_per_token
from anyformer.compare.contenders import Contender
from anyformer.compare.plan.calibrate import StepTime, by_peak, calibrate
from anyformer.compare.plan.devices import CUDA_CONTEXT, Device, find_device
from anyformer.compare.plan.fit import Change, changes_that_fit
from anyformer.compare.plan.measure import resident
from anyformer.compare.plan.run_settings import read_run
from anyformer.compare.plan.step import StepCount, Workload, count_step
from anyformer.compare.plan.workload import make_workload
from anyformer.config import ModelConfig
from anyformer.errors import UserError
from anyformer.one_line import OneLine


@dataclass(frozen=True, kw_only=True, repr=False)
class TrainingPlan(OneLine):
    """What training takes, of one process unless it says otherwise; memory in bytes, time in seconds, money in dollars.

    Attributes:
        model: its name.
        task: what it learns: an objective of training, or a task of fine-tuning.
        device: which it is planned for.
        dtype: of the products.
        engine: of the processes; None: a single one.
        processes: how many.
        batch_size: texts in a step, of all processes.
        context: tokens of a text.
        parameters: of the model with its adapter.
        trained_parameters: of them.
        memory: by part, when they are most in all: weights, gradients, optimizer, activations, logits, batch, and
            `allocator`, what the C library's heap loses between tensors (on a CPU).
        between_steps: by part, what stays from one step to the next.
        peak: all of `memory` together.
        base: what the process takes before: the interpreter and torch, or CUDA's context.
        device_memory: what there is.
        fits: whether that is enough; on a CPU for all processes together.
        changes: flags that were tried because it doesn't fit, the last of which fits if any does.
        cache: of the keys and values that generating a text as long as the context keeps, in bfloat16.
        formula: what the usual formulas say, by part: weights, gradients and optimizer from the number of parameters,
            activations from Korthikanti et al. 2022, equation 2.
        tokens: that a step reads, sources among them, of all processes.
        flops: of a step, of all processes.
        flops_formula: `6 N + 12 L d s` (Chowdhery et al. 2022, appendix B) times the tokens.
        time: of a step.
        steps: of the run; None: not known.
        seconds: of the run, low, likely and high.
        price_per_hour: of a device; None: not known.
        cost: of the run, of all devices, likewise low, likely and high.
    """

    shown: ClassVar = ("model", "task", "device", "peak", "fits", "steps", "seconds", "cost")

    model: str
    task: str
    device: str
    dtype: str
    engine: str | None
    processes: int
    batch_size: int
    context: int
    parameters: int
    trained_parameters: int
    memory: Mapping[str, int]
    between_steps: Mapping[str, int]
    peak: int
    base: int
    device_memory: float
    fits: bool
    changes: tuple[Change, ...]
    cache: int
    formula: Mapping[str, float]
    tokens: int
    flops: int
    flops_formula: float
    time: StepTime
    steps: int | None
    seconds: tuple[float, float, float] | None
    price_per_hour: float | None
    cost: tuple[float, float, float] | None

    @property
    def flops_per_token(self) -> float:
        """Operations of a step for each token that it reads."""
        return self.flops / max(self.tokens, 1)


@dataclass(frozen=True, kw_only=True)
class Request:
    """What was asked for.

    Attributes:
        workload: one step.
        device: where.
        name: of the model.
        steps: of the run; None: not known.
        tokens: of the run, instead of steps.
        price_per_hour: of a device; None: that of the table.
        calibrate: take real steps, where it is planned for this machine.
    """

    workload: Workload
    device: Device
    name: str
    steps: int | None = None
    tokens: int | None = None
    price_per_hour: float | None = None
    calibrate: bool = True


def plan(
    model: ModelConfig | str | Path,
    *,
    device: str | None = None,
    tokens: int | None = None,
    price_per_hour: float | None = None,
    calibrate: bool = False,
    **options: Any,
) -> TrainingPlan:
    """What training a model takes, before it is begun, as `anyformer plan` says.

    Args:
        model: A config, a preset, or a directory; see `anyformer diff`. None of its weights is read or allocated. Of a
            run directory the run's settings are taken, unless options change them.
        device: One of the table, such as ``"h100"``; None: this machine's processors.
        tokens: Of the whole run, for time and money; ``steps=1000`` is another way to say it.
        price_per_hour: Of a device, in dollars; None: that of the table, if it has one.
        calibrate: Take some real steps to know the time on this machine.
        **options: The flags of `anyformer train` and `anyformer finetune`: ``batch_size=8``, ``context=1024``,
            ``dtype="bfloat16"``, ``lora=16``, ``gradient_checkpointing=True``, ``engine="fsdp"``, ``processes=8``.

    Raises:
        UserError: There is no such model or device, or the options contradict each other or the model.

    ::

        found = af.plan("llama-3.2-1b", device="h100", batch_size=8, context=2048)
        print(found.peak / 1e9, found.fits)
    """
    if isinstance(model, ModelConfig):
        contender = Contender("model", model)
    else:
        away, sized = device is not None, tokens is not None
        contender, options = read_run(str(model), options, elsewhere=away, is_sized=sized)
    return make_plan(request(contender, options, device, tokens, price_per_hour, calibrate=calibrate))


def request(
    contender: Contender,
    options: Mapping[str, Any],
    device: str | None,
    tokens: int | None = None,
    price_per_hour: float | None = None,
    *,
    calibrate: bool = True,
) -> Request:
    """What is asked for by these options. Raises UserError as `plan`."""
    if tokens is not None and (tokens < 1 or options.get("steps") is not None):
        raise UserError(f"--tokens {tokens} is the length of the run, at least 1: give it, or --steps.")
    if price_per_hour is not None and not 0 <= price_per_hour < float("inf"):
        raise UserError(f"--price-per-hour {price_per_hour} is a sum of money, from 0 on.")
    where = find_device(device)
    workload = make_workload(contender, options, where)
    return Request(
        workload=workload,
        device=where,
        name=contender.name,
        steps=options.get("steps"),
        tokens=tokens,
        price_per_hour=price_per_hour,
        calibrate=calibrate,
    )


def make_plan(asked: Request) -> TrainingPlan:
    """Count the step, look whether it fits, and say what it costs."""
    workload, device, config = asked.workload, asked.device, asked.workload.config
    shared = device.name == "cpu"
    count = count_step(workload)
    base = (resident() or 0) if shared else CUDA_CONTEXT
    room = device.memory - base * (config.processes if shared else 1)
    fits = count.peak * (config.processes if shared else 1) <= room
    changes = () if fits else changes_that_fit(workload, room, shared=shared)
    batch = workload.batch()
    tokens = batch.tokens.size + (0 if batch.source is None else batch.source.size)
    time = calibrate(workload, count) if shared and asked.calibrate and fits else by_peak(workload, count.flops, device)
    steps = asked.steps if asked.tokens is None else -(-asked.tokens // tokens)
    seconds = None if steps is None else (time.low * steps, time.seconds * steps, time.high * steps)
    price = device.price if asked.price_per_hour is None else asked.price_per_hour
    devices = 1 if shared else config.processes
    return TrainingPlan(
        model=asked.name,
        task=workload.task,
        device=device.name,
        dtype=workload.precision.name,
        engine=config.engine,
        processes=config.processes,
        batch_size=batch.examples,
        context=config.context,
        parameters=count.parameters[0],
        trained_parameters=count.parameters[1],
        memory={**count.parts, **({"allocator": count.allocator} if count.allocator else {})},
        between_steps=count.resident,
        peak=count.peak,
        base=base,
        device_memory=device.memory,
        fits=fits,
        changes=changes,
        cache=cache_bytes_per_token(workload.model) * config.context,
        formula=formula(workload, count),
        tokens=tokens,
        flops=count.flops,
        flops_formula=flops_formula(workload, count) * tokens,
        time=time,
        steps=steps,
        seconds=seconds,
        price_per_hour=price,
        cost=None
        if price is None or seconds is None
        else (
            seconds[0] / 3600 * price * devices,
            seconds[1] / 3600 * price * devices,
            seconds[2] / 3600 * price * devices,
        ),
    )


def formula(workload: Workload, count: StepCount) -> dict[str, float]:
    """Bytes by part of one process by the usual formulas, which explain what was counted and are not used for it.

    Weights and their gradients take 4 bytes a parameter, AdamW's state 8, shared by the processes with fsdp.
    Activations take ``s b h (34 + 5 a s / h)`` a layer in 16 bits, of which 34 alone where attention is fused
    (Korthikanti et al. 2022, equation 2), and ``2 s b h`` where they are computed again.
    """
    model, config = workload.model, workload.config
    share = config.processes if config.engine == "fsdp" else 1
    everything, trained = count.parameters
    rows = -(-config.batch_size // config.processes // config.grad_accumulation) or 1
    layers = model.encoder_layers + model.decoder_layers
    number = 2 if config.gradient_checkpointing else 34
    width = 1 if workload.precision.dtype.itemsize == 2 else 2
    return {
        "weights": 4 * everything / share,
        "gradients": 4 * trained / share,
        "optimizer": (8 if config.optimizer == "adamw" else 4) * trained / share,
        "activations": config.context * rows * model.d_model * number * layers * width,
    }


def flops_formula(workload: Workload, count: StepCount) -> float:
    """``6 N + 12 L d s`` a token."""
    model, layers = workload.model, workload.model.encoder_layers + workload.model.decoder_layers
    return 6 * count.parameters[0] + 12 * layers * model.d_model * workload.config.context
