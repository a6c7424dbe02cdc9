"""`anyformer plan MODEL ...`: what training would take, before it is begun."""

import gc
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from anyformer.cli.options import Parser, Positional, change_model
from anyformer.errors import UserError
from anyformer.pages.formatting import byte_size
from anyformer.schema import flag, hints
from anyformer.terminal import write

if TYPE_CHECKING:
    from anyformer.plan.cluster import ClusterStep
    from anyformer.plan.plan import TrainingPlan
    from anyformer.plan.workload import Workload

_DECISIVE = (
    *("context", "batch_size", "batch_tokens", "grad_accumulation", "steps", "optimizer", "average", "label_smoothing"),
    *("dtype", "gradient_checkpointing", "engine", "processes", "objective", "document_masking", "tokenizer", "task"),
    *("labels", "label_kind", "packing", "lora", "lora_alpha", "lora_dropout", "targets", "dora", "rslora"),
)
"""The settings of a run that decide what a step takes."""
_OF_CLUSTER = {"batch_size", "context", "gradient_checkpointing"}
"""Settings that a prediction for a mesh knows."""
_BILLION = 10**9
_LONGEST = 8192
"""Tokens of a text on a mesh, where none are asked for."""


@dataclass(frozen=True)
class PlanOptions:
    """Plan training before it is begun: memory by part, whether it fits, operations, time and money.

    Put it in the place of `train` or `finetune`: it takes their flags, and reads neither weights nor data. Of a run
    directory it takes the run's settings, which flags change. Memory is counted on tensors without data, through the
    step that training takes. On this machine real steps tell the time, elsewhere the device's peak and the share of it
    that is usual. On a --mesh of devices all is told on paper, from arithmetic and the bytes that links carry.

    Examples:
        anyformer plan llama-3.2-1b --batch-size 8 --context 2048 --device h100
        anyformer plan llama-3.1-8b --lora 16 --device a100 --engine fsdp --processes 8 --tokens 1000000
        anyformer plan gpt2 --context 512 --batch-size 16 --steps 2000
        anyformer plan runs/llama-nano-1 --batch-size 64
        anyformer plan runs/bert-mini-1 --task classify --batch-size 32
        anyformer plan llama-3.1-8b --device h100 --devices 256 --mesh fsdp=32,tp=8 --batch-size 128
    """

    model: Positional[str]
    """A preset, a config file, a model or run directory; fields of it changed as in llama:norm.kind=layer."""
    device: str | None = None
    """The kind of device, such as h100, a100, l4, t4, rtx-4090 (default: this machine's processors)."""
    tokens: int | None = None
    """Tokens that the run reads, instead of --steps, for its time and price."""
    price_per_hour: float | None = None
    """Price of an hour of a device (default: a price of the table, with its date)."""
    devices: int | None = None
    """Devices of a cluster, on which the step is predicted (default: those of --mesh)."""
    mesh: str | None = None
    """How they share a step: replicas, shards of the weights, parts of matrices and of the context, as in
    dp=2,fsdp=16,tp=8,cp=1 (default: all are fsdp)."""
    calibrate: bool | None = None
    """Take real steps for up to a minute to tell the time on this machine (default: for two seconds; --no-calibrate
    leaves that out)."""
    json: bool = False
    """Print JSON instead of tables."""


def run(argv: list[str]) -> int:
    """Print the plan; returns the exit status."""
    values = _parser().values(argv)

    from anyformer.console import Console

    if "devices" in values or "mesh" in values:
        return _cluster(values)
    with Console(stderr=True).status("reading the model") as status:
        arguments = _arguments(values)

        from anyformer.plan.plan import make_plan

        gc.freeze()  # else a seventh of the time is for looking through the objects of what was imported
        plan = make_plan(**arguments, say=status.update)
    if values.get("json"):
        write(json.dumps({**asdict(plan), "flops_per_token": plan.flops_per_token}, indent=2))
    else:
        _print(plan)
    return 0


def _cluster(values: Mapping[str, Any]) -> int:
    """Print the prediction of a step on a mesh of devices; returns the exit status."""
    from anyformer.plan.cluster import parse_mesh, predict
    from anyformer.plan.devices import check_price, find_device
    from anyformer.plan.workload import read_run

    mesh = parse_mesh(values.get("mesh"), values.get("devices"))
    check_price(values.get("price_per_hour"))
    tokens = values.get("tokens", _BILLION)
    if tokens < 1:
        raise UserError(f"--tokens {tokens} is the length of the run, at least 1.")
    settings = {name for name in values if name not in hints(PlanOptions) and "." not in name}
    settings |= {"calibrate"} & values.keys()  # nothing is run
    if others := settings - _OF_CLUSTER:
        raise UserError(
            f"{', '.join(sorted(map(flag, others)))}: --mesh predicts the training of all weights in bfloat16 with "
            f"AdamW, and takes only {', '.join(sorted(map(flag, _OF_CLUSTER)))}."
        )
    device = find_device(values.get("device") or "h100")
    model, _ = read_run(values["model"], {}, elsewhere=True)
    config = change_model(model.config, values, "plan")
    step = predict(
        config,
        mesh,
        device,
        values.get("batch_size", mesh.batches),
        values.get("context", min(config.max_length or _LONGEST, _LONGEST)),
        recomputed=float(bool(values.get("gradient_checkpointing"))),
    )
    price = values.get("price_per_hour", device.price)
    if values.get("json"):
        figures = {name: getattr(step, name) for name in ("seconds", "tokens_per_second", "utilization")}
        write(json.dumps({**asdict(step), **figures}, indent=2))
    else:
        _print_cluster(model.spec, step, tokens, price)
    return 0


def read_arguments(argv: Sequence[str]) -> "Workload":
    """The workload of the arguments. Raises UserError as `anyformer.plan`."""
    from anyformer.plan.devices import find_device
    from anyformer.plan.workload import make_workload

    arguments = _arguments(_parser().values(argv))
    return make_workload(arguments["model"], arguments["options"], find_device(arguments["device"]))


def _parser() -> Parser:
    from anyformer.finetuning.config import FinetuneConfig
    from anyformer.training.config import TrainConfig

    parser = Parser("plan", PlanOptions.__doc__ or "")
    parser.add_fields(PlanOptions)
    # Those that change nothing here are taken so that plan can stand in the place of another command.
    for names, hidden in ((_DECISIVE, False), (None, True)):
        for kind in (TrainConfig, FinetuneConfig):
            parser.add_fields(kind, names, section=None, hidden=hidden)
    parser.add_model_flags()
    return parser


def _arguments(values: Mapping[str, Any]) -> dict[str, Any]:
    from anyformer.plan.calibrate import FEW_SECONDS, SECONDS
    from anyformer.plan.workload import read_run

    own = {name: values.get(name) for name in ("device", "tokens", "price_per_hour")}
    settings = {name: value for name, value in values.items() if name not in hints(PlanOptions) and "." not in name}
    model, settings = read_run(
        values["model"], settings, elsewhere=own["device"] is not None, is_sized=own["tokens"] is not None
    )
    model = replace(model, config=change_model(model.config, values, "plan"))
    seconds = {None: FEW_SECONDS, True: SECONDS, False: 0.0}[values.get("calibrate")]
    return {"model": model, "options": settings, **own, "calibrate": seconds}


def _print(plan: "TrainingPlan") -> None:
    from anyformer.console import Console, table
    from anyformer.plan.devices import PRICES_OF

    console = Console()
    trained = f", {plan.trained_parameters:,} of them trained" if plan.trained_parameters < plan.parameters else ""
    devices = plan.device if plan.engine is None else f"{plan.processes} {plan.device}, {plan.engine}"
    active = f", {plan.active_parameters:,} of them for a token" if plan.active_parameters < plan.parameters else ""
    console.print(f"{plan.model}: {plan.parameters:,} parameters{active}{trained}", style="bold")
    console.print(f"{plan.task}, {plan.batch_size} texts of {plan.context} tokens a step, {plan.dtype} on {devices}")
    memory = table("memory", numbers=("counted", "share", "formula"), gap=3)
    memory.add_column("")
    for name in dict.fromkeys((*plan.memory, *plan.formula)):
        size, formula = plan.memory.get(name, 0), plan.formula.get(name)
        bar = "█" * round(24 * size / plan.peak)
        shown = "" if formula is None else byte_size(formula)
        memory.add_row(name, byte_size(size), f"{size / plan.peak:.0%}", shown, bar)
    each = "" if plan.processes == 1 else " of each process"
    memory.add_row(f"peak{each}", byte_size(plan.peak), "", "", "", style="bold")
    console.print("", memory, "", sep="\n")
    for name, reason in plan.differences.items():
        console.print(f"{name}: {byte_size(plan.formula[name])} by the formula; {reason}.", style="dim")
    is_cpu, verdict = plan.device == "cpu", "fits" if plan.fits else "does not fit"
    together = f" {plan.processes} times" if is_cpu and plan.processes > 1 else ""
    others = f"{byte_size(plan.base)} for {'Python and torch' if is_cpu else 'CUDA'}"
    line = f"It {verdict}{together} into {byte_size(plan.device_memory)} beside {others}."
    console.print(line, style="green" if plan.fits else "red")
    for change in plan.changes:
        console.print(f"  {change.flags}: {byte_size(change.peak)}, {'fits' if change.fits else 'does not'}")
    if not plan.fits and not any(change.fits for change in plan.changes):
        console.print("  No flag is enough: take a shorter --context, a smaller --batch-size or model.")
    if plan.cache:
        console.print(f"Generating such a text keeps {byte_size(plan.cache)} of keys and values.")
    formula = f"6 N + 12 L d s: {plan.flops_formula / plan.tokens:.3g}"
    console.print(f"A step takes {plan.flops:.3g} FLOPs, {plan.flops_per_token:.3g} a token ({formula}).")
    time = plan.time
    speed = f"{plan.tokens / time.seconds:,.0f} tokens/s"
    console.print(f"A step takes {_time(time.seconds)} ({_range(time.low, time.high)}: {time.reason}); {speed}.")
    million = f"A million tokens take {_time(time.seconds * 1e6 / plan.tokens)}"
    rate = "" if plan.price_per_hour is None else f"at ${plan.price_per_hour:g} an hour and device"
    if plan.cost_per_million is None:
        console.print(f"{million}; there is no price of it: --price-per-hour tells one.")
    else:
        low, likely, high = plan.cost_per_million
        console.print(f"{million} and cost ${likely:,.4g} (${low:,.4g} to ${high:,.4g}) {rate}.")
    if plan.seconds is not None:
        low, likely, high = plan.seconds
        console.print(f"{plan.steps:,} steps take {_time(likely)} ({_range(low, high)}).")
    if plan.cost is not None:
        low, likely, high = plan.cost
        money = f"${likely:,.2f} (${low:,.2f} to ${high:,.2f})"
        console.print(f"They cost {money} {rate} (prices of the table: {PRICES_OF}).")


def _print_cluster(name: str, step: "ClusterStep", tokens: int, price: float | None) -> None:
    from anyformer.console import Console, table

    console, mesh = Console(), step.mesh
    console.print(f"{name} on {mesh.devices:,} {step.device.name}: {mesh}", style="bold")
    console.print(f"{step.tokens:,} tokens a step, bfloat16, AdamW; predicted on paper, nothing was run")
    times = table("of a step", numbers=("takes", "is waited for", "receives"), gap=3)
    times.add_row("arithmetic", _time(step.compute), _time(step.compute), "")
    for each in step.exchanges:
        times.add_row(each.name, _time(each.seconds), _time(each.exposed), byte_size(each.bytes))
    times.add_row("step", "", _time(step.seconds), "", style="bold")
    console.print("", times, "", sep="\n")
    kept = sum(step.memory.values())
    parts = ", ".join(f"{part} {byte_size(size)}" for part, size in step.memory.items())
    fits, room = kept < step.device.memory, byte_size(step.device.memory)
    console.print(f"A device keeps {byte_size(kept)} by the usual formulas ({parts}).")
    console.print(f"It has {room}: {'enough' if fits else 'not enough'}.", style="green" if fits else "red")
    rate, together = step.tokens_per_second, step.tokens_per_second * mesh.devices
    console.print(f"{rate:,.0f} tokens/s a device, {together:,.0f} in all: {step.utilization:.0%} of the peak.")
    seconds = tokens / together
    run = f"{tokens:,} tokens take {_time(seconds)}"
    if price is None:
        console.print(f"{run}; there is no price of it: --price-per-hour tells one.")
    else:
        cost = price * mesh.devices * seconds / 3600
        console.print(f"{run} and cost ${cost:,.4g} at ${price:g} an hour and device.")


def _range(low: float, high: float) -> str:
    return f"{_time(low)} to {_time(high)}"


def _time(seconds: float) -> str:
    for unit, size in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.3g} s" if seconds >= 1 else f"{seconds * 1000:.3g} ms"
