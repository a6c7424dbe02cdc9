"""Plans of training: counted on tensors without memory, timed by real steps or by a device's peak.

Flags that would make a step fit are each tried by planning again.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from anyformer.analysis import cache_bytes_per_token, part_costs, unused_parameters
from anyformer.config import ModelConfig
from anyformer.errors import UserError, check_keywords
from anyformer.finetuning.config import CompleteFinetuneConfig
from anyformer.one_line import OneLine
from anyformer.plan.calibrate import SECONDS, StepTime, by_peak
from anyformer.plan.calibrate import calibrate as calibrated
from anyformer.plan.devices import CUDA_CONTEXT, check_price, find_device
from anyformer.plan.step import StepCount, count_step
from anyformer.plan.workload import SETTINGS, Workload, make_workload, read_run
from anyformer.schema import flag
from anyformer.spec import SpecifiedModel
from anyformer.training.memory import proc_field

_PROCESSES = (2, 4, 8)
_LORA = 16
"""Numbers of processes, and the rank of an adapter, that are tried to make a step fit."""


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


@dataclass(frozen=True, kw_only=True, repr=False)
class TrainingPlan(OneLine):
    """Plan of a training run, for one process unless it says otherwise; in bytes, seconds and dollars.

    Attributes:
        task: what it learns: an objective of training, or a task of fine-tuning.
        device: which it is planned for.
        engine: of the processes; None: a single one.
        batch_size: texts in a step, of all processes.
        parameters: of the model with its adapter.
        trained_parameters: of them.
        active_parameters: of them, those that a token is computed with.
        memory: by part, when they are most in all: weights, gradients, optimizer, activations, logits, batch, and
            `allocator`, what the C library's heap loses between tensors (on a CPU).
        between_steps: by part, what stays from one step to the next.
        peak: all of `memory` together.
        base: what the process takes before: the interpreter and torch, or CUDA's context.
        device_memory: what there is.
        fits: whether that is enough; on a CPU for all processes together.
        changes: flags that were tried because it doesn't fit: of every kind, up to the first that is enough.
        cache: of the keys and values that generating a text as long as the context keeps, in bfloat16.
        formula: what the usual formulas say, by part: weights, gradients and optimizer from the number of parameters,
            activations from Korthikanti et al. 2022, equation 2.
        differences: why what was counted is something else than the formula says, by part.
        tokens: that a step reads, sources among them, of all processes.
        flops: of a step, of all processes.
        flops_formula: `6 N + 12 L d s` (Chowdhery et al. 2022, appendix B) times the tokens.
        steps: of the run; None: not known.
        seconds: of the run, low, likely and high.
        price_per_hour: of a device; None: not known.
        cost: of the run, of all devices, likewise low, likely and high.
        cost_per_million: the same of a million tokens; None: there is no price.
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
    active_parameters: int
    memory: Mapping[str, int]
    between_steps: Mapping[str, int]
    peak: int
    base: int
    device_memory: float
    fits: bool
    changes: tuple[Change, ...]
    cache: int
    formula: Mapping[str, float]
    differences: Mapping[str, str]
    tokens: int
    flops: int
    flops_formula: float
    time: StepTime
    steps: int | None
    seconds: tuple[float, float, float] | None
    price_per_hour: float | None
    cost: tuple[float, float, float] | None
    cost_per_million: tuple[float, float, float] | None

    @property
    def flops_per_token(self) -> float:
        """Operations of a step for each token that it reads."""
        return self.flops / max(self.tokens, 1)


def plan(
    model: ModelConfig | str | Path,
    *,
    device: str | None = None,
    tokens: int | None = None,
    price_per_hour: float | None = None,
    calibrate: bool = False,
    **options: Any,
) -> TrainingPlan:
    """Plan the training of a model before it is begun, as `anyformer plan` does.

    Args:
        model: A config, a preset, or a directory; see `anyformer diff`. None of its weights is read or allocated. Of a
            run directory the run's settings are taken, unless options change them.
        device: One of the table, such as ``"h100"``; None: this machine's processors.
        tokens: Of the whole run, for time and money; ``steps=1000`` is another way to say it.
        price_per_hour: Of a device, in dollars; None: that of the table, if it has one.
        calibrate: Take real steps for up to a minute to know the time on this machine.
        **options: The flags of `anyformer train` and `anyformer finetune`: ``batch_size=8``, ``context=1024``,
            ``dtype="bfloat16"``, ``lora=16``, ``gradient_checkpointing=True``, ``engine="fsdp"``, ``processes=8``.

    Raises:
        UserError: There is no such model or device, or the options contradict each other or the model.

    ::

        planned = af.plan("llama-3.2-1b", device="h100", batch_size=8, context=2048)
        print(planned.peak / 1e9, planned.fits)
    """
    check_keywords("plan", options, SETTINGS | {"device", "tokens", "price_per_hour", "calibrate"})
    if isinstance(model, ModelConfig):
        specified = SpecifiedModel("model", model)
    else:
        away, sized = device is not None, tokens is not None
        specified, options = read_run(str(model), options, elsewhere=away, is_sized=sized)
    return make_plan(specified, options, device, tokens, price_per_hour, calibrate=SECONDS * calibrate)


def make_plan(
    model: SpecifiedModel,
    options: Mapping[str, Any],
    device: str | None,
    tokens: int | None = None,
    price_per_hour: float | None = None,
    *,
    calibrate: float = SECONDS,
    say: Callable[[str], None] = lambda stage: None,
) -> TrainingPlan:
    """Count the step, look whether it fits, and say what it costs; arguments and errors as `plan`'s.

    Args:
        calibrate: Seconds that real steps may take, where it is planned for this machine.
    """
    if tokens is not None and (tokens < 1 or options.get("steps") is not None):
        raise UserError(f"--tokens {tokens} is the length of the run, at least 1: give it, or --steps.")
    check_price(price_per_hour)
    target = find_device(device)
    workload = make_workload(model, options, target)
    config, shared = workload.config, target.name == "cpu"
    say("counting a step")
    count = count_step(workload)
    base = (proc_field("self/status", "VmRSS") or 0) if shared else CUDA_CONTEXT
    together = config.processes if shared else 1
    room = target.memory - base * together
    fits = count.peak * together <= room
    changes = () if fits else changes_that_fit(workload, count, room, shared=shared, say=say)
    if shared and calibrate and fits:
        say("taking real steps")
        time = calibrated(workload, count, calibrate)
    else:
        time = by_peak(workload, count.flops, target)
    batch = workload.batch()
    tokens_of_step = batch.tokens.size + (0 if batch.source is None else batch.source.size)
    steps: int | None = options.get("steps") if tokens is None else -(-tokens // tokens_of_step)
    price = target.price if price_per_hour is None else price_per_hour
    dollars_per_second = None if price is None else price / 3600 * (1 if shared else config.processes)
    usual = formula(workload, count)
    return TrainingPlan(
        model=model.spec,
        task=workload.task,
        device=target.name,
        dtype=workload.precision.name,
        engine=config.engine,
        processes=config.processes,
        batch_size=batch.examples,
        context=config.context,
        parameters=count.parameters[0],
        trained_parameters=count.parameters[1],
        active_parameters=count.parameters[0] - unused_parameters(workload.model),
        memory={**count.parts, **({"allocator": count.allocator} if count.allocator else {})},
        between_steps=count.resident,
        peak=count.peak,
        base=base,
        device_memory=target.memory,
        fits=fits,
        changes=changes,
        cache=cache_bytes_per_token(workload.model) * config.context,
        formula=usual,
        differences=differences(workload, count, usual),
        tokens=tokens_of_step,
        flops=count.flops,
        flops_formula=flops_formula(workload, count) * tokens_of_step,
        time=time,
        steps=steps,
        seconds=_times(time, steps),
        price_per_hour=price,
        cost=_times(time, steps, dollars_per_second),
        cost_per_million=_times(time, 1e6 / tokens_of_step, dollars_per_second),
    )


def _times(time: StepTime, *factors: float | None) -> tuple[float, float, float] | None:
    """The low, likely and high time of a step, times all factors; None: one of them is not known."""
    numbers = [factor for factor in factors if factor is not None]
    factor = math.prod(numbers)
    return (time.low * factor, time.seconds * factor, time.high * factor) if len(numbers) == len(factors) else None


def changes_that_fit(
    workload: Workload, count: StepCount, room: float, *, shared: bool, say: Callable[[str], None]
) -> tuple[Change, ...]:
    """Changes of every kind, the mildest first, each kind up to the first that fits.

    What the C library's heap adds is taken to be the same share as without a change.

    Args:
        count: of the workload, which does not fit.
        room: bytes for the training of one process, or of all of them.
        shared: whether all processes share it, as on a CPU.
        say: is told what is about to be tried.
    """
    heap = count.peak / (count.peak - count.allocator)
    stays = sum(count.resident.values())
    tried: list[Change] = []

    def fits(fields: dict[str, Any], at_least: float) -> bool:
        """Try a change, unless even what it leaves in memory between two steps is too much."""
        changed = workload.change(**fields)
        processes = changed.config.processes if shared else 1
        if at_least * processes > room:
            return False
        flags = " ".join(flag(*each) for each in fields.items() if each != ("grad_accumulation", 1))
        say(f"counting a step with {flags}")
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


_BYTES = {"float32": 4, "bfloat16": 2, "int8": 1, "int4": 0.5}
_ALIKE = 0.1
"""Largest share by which a count differs from a formula that is the same to people."""


def formula(workload: Workload, count: StepCount) -> dict[str, float]:
    """Bytes by part of one process by the usual formulas, which explain what was counted and are not used for it.

    Weights and their gradients take 4 bytes a parameter, those that stay as they are 2, 1 or a half as their dtype
    does, AdamW's state 8, shared by the processes with fsdp.
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
    frozen_dtype = getattr(config, "quantize", None) or getattr(config, "base_dtype", "float32")
    return {
        "weights": (4 * trained + _BYTES[frozen_dtype] * (everything - trained)) / share,
        "gradients": 4 * trained / share,
        "optimizer": (8 if config.optimizer == "adamw" else 4) * trained / share,
        "activations": config.context * rows * model.d_model * number * layers * width,
    }


def differences(workload: Workload, count: StepCount, usual: Mapping[str, float]) -> dict[str, str]:
    """Why the bytes of a part are not what its formula says, for people; parts that agree are left out."""
    model, config = workload.model, workload.config
    kept = [
        *(["the input of every adapter in float32"] if getattr(config, "lora", None) else []),
        *(["three vectors of a gated feed-forward network, not two"] if model.feed_forward.gated else []),
        *(["norms and sums in float32"] if workload.precision.dtype.itemsize == 2 else []),
        "what the pass that is at work takes for a while",
    ]
    reasons = {
        "weights": "beside the integers there are their scales, their transposes, and what is not quantized"
        if config.is_quantized
        else "buffers, and what is not shared evenly",
        "gradients": "with ddp they stay in its buckets"
        if count.parts.get("gradients", 0) > usual["gradients"]
        else "memory is fullest when some of them, or all, are not there: each is freed, or not computed yet",
        "optimizer": "its update allocates something as well"
        if count.parts.get("optimizer", 0) > usual["optimizer"]
        else "it has less to remember of some parameters",
        "activations": "the formula is of the inputs of blocks alone, and one block is computed again at a time"
        if config.gradient_checkpointing
        else f"the formula is GPT-3's block in 16 bits; counted are also {', '.join(kept[:-1])}, and {kept[-1]}"
        if count.parts.get("activations", 0) > usual["activations"]
        else "the formula is GPT-3's block: memory may be fullest when few blocks' are there, and some keep less",
    }
    return {
        part: reason
        for part, reason in reasons.items()
        if abs(count.parts.get(part, 0) - usual[part]) > _ALIKE * usual[part]
    }


def flops_formula(workload: Workload, count: StepCount) -> float:
    """``6 N + 12 L d s`` a token. Weights that several layers share are in N as often, unused experts not at all."""
    model, layers = workload.model, workload.model.encoder_layers + workload.model.decoder_layers
    distinct, again = min(layers, model.distinct_layers or layers), 0
    if distinct < layers:
        shared = sum(part.parameters for part in part_costs(model, 1) if part.layers > 1)
        again = shared * (layers - distinct) // distinct
    active = count.parameters[0] - unused_parameters(model)
    return 6 * (active + again) + 12 * layers * model.d_model * workload.config.context
