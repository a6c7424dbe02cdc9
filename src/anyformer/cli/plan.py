"""`anyformer plan MODEL ...`: what training would take, before it is begun."""

import gc
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

from anyformer.cli.options import Parser, Positional, change_model
from anyformer.pages.formatting import byte_size
from anyformer.terminal import write

if TYPE_CHECKING:
    from anyformer.plan.plan import Request, TrainingPlan

_SECTIONS: dict[str, tuple[str, ...]] = {
    "batches and length": ("context", "batch_size", "batch_tokens", "grad_accumulation", "steps"),
    "what is trained": ("optimizer", "average", "label_smoothing"),
    "hardware": ("dtype", "gradient_checkpointing", "engine", "processes"),
}
_TRAINING = ("objective", "document_masking", "tokenizer")
_TUNING = ("task", "labels", "label_kind", "packing", "lora", "lora_alpha", "lora_dropout", "targets", "dora", "rslora")
"""The fields of a RunConfig, a TrainConfig and a FinetuneConfig that decide what a step takes."""


@dataclass(frozen=True)
class PlanOptions:
    """Plan training before it is begun: memory by part, whether it fits, operations, time and money.

    Put it in the place of `train` or `finetune`: it takes their flags, and reads neither weights nor data. Of a run
    directory it takes the run's settings, which flags change. Memory is counted on tensors without data, through the
    step that training takes. On this machine real steps tell the time, elsewhere the device's peak and the share of it
    that is usual.

    Examples:
        anyformer plan llama-3.2-1b --batch-size 8 --context 2048 --device h100
        anyformer plan llama-3.1-8b --lora 16 --device a100 --engine fsdp --processes 8 --tokens 1000000
        anyformer plan gpt2 --context 512 --batch-size 16 --steps 2000
        anyformer plan runs/llama-nano-1 --batch-size 64
        anyformer plan runs/bert-mini-1 --task classify --batch-size 32
    """

    model: Positional[str]
    """A preset, a config file, a model or run directory; fields of it changed as in llama:norm.kind=layer."""
    device: str | None = None
    """The kind of device, such as h100, a100, l4, t4, rtx-4090 (default: this machine's processors)."""
    tokens: int | None = None
    """Tokens that the run reads, instead of --steps, for its time and price."""
    price_per_hour: float | None = None
    """Price of an hour of a device (default: a price of the table, with its date)."""
    calibrate: bool | None = None
    """Take real steps for up to a minute to tell the time on this machine (default: for two seconds; --no-calibrate
    leaves that out)."""
    json: bool = False
    """Print JSON instead of tables."""


def run(argv: list[str]) -> int:
    """Print the plan; returns the exit status."""
    values = _parser().given(argv)
    as_json: bool = values.get("json", False)

    from anyformer.console import Console

    with Console(stderr=True).status("reading the model") as status:
        asked = _request(values)

        from anyformer.plan.plan import make_plan

        gc.freeze()  # else a seventh of the time is for looking through the objects of what was imported
        found = make_plan(asked, status.update)
    if as_json:
        write(json.dumps({**asdict(found), "flops_per_token": found.flops_per_token}, indent=2))
    else:
        _print(found)
    return 0


def read_arguments(argv: Sequence[str]) -> "Request":
    """The request of the arguments. Raises UserError as `anyformer.plan`."""
    return _request(_parser().given(argv))


def _parser() -> Parser:
    from anyformer.finetuning.config import FinetuneConfig
    from anyformer.training.config import TrainConfig

    parser = Parser("plan", PlanOptions.__doc__ or "")
    parser.add_fields(PlanOptions)
    shown: set[str] = {field.name for field in fields(PlanOptions)}
    for section, names in _SECTIONS.items():
        parser.add_fields(TrainConfig, names, section=section)
        shown |= {*names}
    parser.add_fields(TrainConfig, _TRAINING, section="training from scratch")
    parser.add_fields(FinetuneConfig, _TUNING, section="fine-tuning")
    shown |= {*_TRAINING, *_TUNING, "base", "preset"}
    # The others change nothing here: they are taken so that plan can stand in the place of another command.
    for kind in (TrainConfig, FinetuneConfig):
        others = [field.name for field in fields(kind) if field.name not in shown]
        parser.add_fields(kind, others, hidden=True)
        shown |= {*others}
    parser.add_model_flags()
    return parser


def _request(values: Mapping[str, Any]) -> "Request":
    from dataclasses import replace

    from anyformer.plan.calibrate import FEW_SECONDS, SECONDS
    from anyformer.plan.plan import request
    from anyformer.plan.run_settings import read_run

    own = {field.name for field in fields(PlanOptions)}
    given = {name: values.get(name) for name in ("device", "tokens", "price_per_hour")}
    options = {name: value for name, value in values.items() if name not in own and "." not in name}
    specified, options = read_run(
        values["model"], options, elsewhere=given["device"] is not None, is_sized=given["tokens"] is not None
    )
    specified = replace(specified, config=change_model(specified.config, values, "plan"))
    seconds = {None: FEW_SECONDS, True: SECONDS, False: 0.0}[values.get("calibrate")]
    return request(specified, options, **given, calibrate=seconds)


def _print(found: "TrainingPlan") -> None:
    from rich.table import Table

    from anyformer.console import Console
    from anyformer.plan.devices import PRICES_OF

    console = Console()
    trained = f", {found.trained_parameters:,} of them trained" if found.trained_parameters < found.parameters else ""
    where = found.device if found.engine is None else f"{found.processes} {found.device}, {found.engine}"
    console.print(f"{found.model}: {found.parameters:,} parameters{trained}", style="bold", highlight=False)
    console.print(
        f"{found.task}, {found.batch_size} texts of {found.context} tokens a step, {found.dtype} on {where}",
        highlight=False,
    )
    table = Table("memory", box=None, header_style="bold", pad_edge=False, padding=(0, 3, 0, 0))
    for heading in ("counted", "share", "formula"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("")
    for name in dict.fromkeys((*found.memory, *found.formula)):
        size, said = found.memory.get(name, 0), found.formula.get(name)
        bar = "█" * round(24 * size / found.peak)
        table.add_row(name, byte_size(size), f"{size / found.peak:.0%}", "" if said is None else byte_size(said), bar)
    each = "" if found.processes == 1 else " of each process"
    table.add_row(f"peak{each}", byte_size(found.peak), "", "", "", style="bold")
    console.print()
    console.print(table)
    console.print()
    for name, reason in found.differences.items():
        console.print(
            f"{name}: {byte_size(found.formula[name])} by the formula; {reason}.", style="dim", highlight=False
        )
    verdict = "fits" if found.fits else "does not fit"
    together = f" {found.processes} times" if found.device == "cpu" and found.processes > 1 else ""
    console.print(
        f"It {verdict}{together} into {byte_size(found.device_memory)} beside {byte_size(found.base)} for "
        f"{'Python and torch' if found.device == 'cpu' else 'CUDA'}.",
        style="green" if found.fits else "red",
        highlight=False,
    )
    for change in found.changes:
        told = "fits" if change.fits else "does not"
        console.print(f"  {change.flags}: {byte_size(change.peak)}, {told}", highlight=False)
    if not found.fits and not any(change.fits for change in found.changes):
        console.print("  No flag is enough: take a shorter --context, a smaller --batch-size or model.")
    if found.cache:
        console.print(f"Generating such a text keeps {byte_size(found.cache)} of keys and values.", highlight=False)
    console.print(
        f"A step takes {found.flops:.3g} FLOPs, {found.flops_per_token:.3g} a token (6 N + 12 L d s: "
        f"{found.flops_formula / found.tokens:.3g}).",
        highlight=False,
    )
    time = found.time
    console.print(
        f"A step takes {_time(time.seconds)} ({_time(time.low)} to {_time(time.high)}: {time.reason}); "
        f"{found.tokens / time.seconds:,.0f} tokens/s.",
        highlight=False,
    )
    money = "there is no price of it: --price-per-hour tells one"
    if found.cost_per_million is not None:
        low, likely, high = found.cost_per_million
        money = f"${likely:,.4g} (${low:,.4g} to ${high:,.4g}) at ${found.price_per_hour:g} an hour and device"
    console.print(
        f"A million tokens take {_time(time.seconds * 1e6 / found.tokens)} and cost {money}."
        if found.cost_per_million
        else f"A million tokens take {_time(time.seconds * 1e6 / found.tokens)}; {money}.",
        highlight=False,
    )
    if found.seconds is not None:
        low, likely, high = map(_time, found.seconds)
        console.print(f"{found.steps:,} steps take {likely} ({low} to {high}).", highlight=False)
    if found.cost is not None:
        low, likely, high = found.cost
        console.print(
            f"They cost ${likely:,.2f} (${low:,.2f} to ${high:,.2f}) at ${found.price_per_hour:g} an hour and device "
            f"(prices of the table: {PRICES_OF}).",
            highlight=False,
        )


def _time(seconds: float) -> str:
    for unit, size in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.3g} s" if seconds >= 1 else f"{seconds * 1000:.3g} ms"
