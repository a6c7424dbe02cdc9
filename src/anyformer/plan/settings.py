"""Settings of plans: the flags of `train` and `finetune`, those of a run, and the workload that they make."""

from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch

from anyformer.errors import UserError
from anyformer.families import with_head
from anyformer.finetuning.config import FinetuneConfig, complete, read_fine_tuning
from anyformer.finetuning.model import PROBLEMS
from anyformer.limits import path_inside
from anyformer.plan.devices import Device
from anyformer.plan.workload import Workload
from anyformer.runs.directory import CONFIG, MODEL
from anyformer.schema import flag
from anyformer.spec import SpecifiedModel, read_config
from anyformer.tasks import TASKS
from anyformer.tokenizer.training import parse_spec
from anyformer.training.config import BATCH_TOKENS, ONE_PROCESS, TrainConfig
from anyformer.training.config_file import read_yaml
from anyformer.training.precision import Precision, choose_precision

_OF_TRAIN = {field.name for field in fields(TrainConfig)}
_OF_FINETUNE = {field.name for field in fields(FinetuneConfig)}
SETTINGS = _OF_TRAIN | _OF_FINETUNE
"""Names of all settings of a run."""
_ELSEWHERE = {
    *("model", "preset", "base", "tokenizer", "vocab_size", "max_length"),
    *("device", "runs", "name", "minutes", "epochs"),
}
"""Fields that the model in the run's directory settles, or that say nothing of a step."""


def read_run(
    spec: str, options: Mapping[str, Any], *, elsewhere: bool = False, is_sized: bool = False
) -> tuple[SpecifiedModel, dict[str, Any]]:
    """The model of a specification, and with which settings it is planned.

    They are the run's own, where it names a run directory, and the options, which come first. Settings of another
    command than the run's plan that command with the run's model.

    Args:
        options: Fields of `TrainConfig` and `FinetuneConfig`.
        elsewhere: It is planned for a device that is named, so the run's dtype, chosen for its own, is not taken.
        is_sized: Its length is given in tokens, so the run's steps are not taken.

    Raises:
        UserError: As `read_config`; the run's config can't be read.
    """
    directory = Path(spec)
    if not (directory / CONFIG).is_file() or (directory / "config.json").exists():
        return read_config(spec), dict(options)
    file = path_inside(directory, CONFIG)
    fine_tuning = read_fine_tuning(file)
    settings = vars(read_yaml(file)) if fine_tuning is None else fine_tuning
    if fine_tuning is not None and not (directory / MODEL / "config.json").exists():  # an adapter, or nothing yet
        model = read_config(str(settings["base"]))
    else:
        model = read_config(spec)
    other_command = _OF_FINETUNE - _OF_TRAIN if fine_tuning is None else _OF_TRAIN - _OF_FINETUNE
    if not other_command.isdisjoint(options):
        return model, dict(options)
    dropped = {*_ELSEWHERE, *(["dtype"] if elsewhere else []), *(["steps"] if is_sized else [])}
    kept = {name: value for name, value in settings.items() if name not in dropped and value is not None}
    if fine_tuning is None and "context" not in options:
        kept["max_length"] = model.config.max_length
    return model, {**kept, **options}


def make_workload(model: SpecifiedModel, options: Mapping[str, Any], device: Device) -> Workload:
    """The step of a run with these settings.

    Args:
        model: One with weights is fine-tuned, unless an option is of `train` alone.
        options: Fields of `TrainConfig` and `FinetuneConfig`.

    Raises:
        UserError: settings that contradict each other, a task that the model can't do, a context that it has no
            positions for, a batch that the processes can't share.
    """
    tunes = not (_OF_FINETUNE - _OF_TRAIN).isdisjoint(options) or (
        model.directory is not None and (_OF_TRAIN - _OF_FINETUNE).isdisjoint(options)
    )
    settings = {name: value for name, value in options.items() if name not in ("device", "data", "validation")}
    if settings.get("engine") in ("deepspeed", *ONE_PROCESS):
        raise UserError(
            "plan counts ddp and fsdp; DeepSpeed's stage 3 and xla shard what fsdp does, xla-ddp what ddp does: plan "
            "--engine fsdp, or ddp, with a process for each device."
        )
    for name in ("tensor_parallel", "context_parallel"):
        if settings.get(name, 1) > 1:
            raise UserError(
                f"plan counts processes that are alike: leave {flag(name, settings[name])} out, or predict the "
                "step of a cluster by --devices and --mesh."
            )
    precision = _precision(settings.get("dtype"), device, quantized=bool(settings.get("quantize")))
    settings["dtype"] = precision.name
    workload = _finetuning(model, settings, precision) if tunes else _training(model, settings, precision)
    config = workload.config
    if config.batch_size * config.context > BATCH_TOKENS:
        raise UserError(
            f"--batch-size {config.batch_size} and --context {config.context} make a batch of more than "
            f"{BATCH_TOKENS:,} tokens: lower one of them."
        )
    if config.batch_size % config.processes:
        less = config.batch_size // config.processes * config.processes
        raise UserError(
            f"--processes {config.processes} can't share --batch-size {config.batch_size} evenly: take "
            f"{less or config.processes} or {less + config.processes}."
        )
    return replace(workload, in_heap=device.name == "cpu")


def _training(specified: SpecifiedModel, settings: Mapping[str, Any], precision: Precision) -> Workload:
    model = specified.config
    if (spec := settings.get("tokenizer")) is not None and (size := parse_spec(spec)[1]) is not None:
        sources = {} if model.source_vocab_size is None else {"source_vocab_size": size}
        model = model.replace(vocab_size=size, **sources)
    own = {name: value for name, value in settings.items() if name in _OF_TRAIN}
    config = TrainConfig(preset=specified.spec, model=model, **own).complete()
    return Workload(model=config.model, config=config, task=config.objective, precision=precision)


def _finetuning(specified: SpecifiedModel, settings: Mapping[str, Any], precision: Precision) -> Workload:
    model = specified.config
    own = {name: value for name, value in settings.items() if name in _OF_FINETUNE and name != "base"}
    incomplete = FinetuneConfig(base=specified.spec, **own)
    task = TASKS[incomplete.task or next(iter(TASKS))]
    if (instead := task.instead(model)) is not None:
        task, _ = instead
    task.check_model(model, specified.spec)
    config = complete(incomplete, model, task.name)
    if task.head != "language_model" and model.head.kind != task.head:
        labels = config.labels or (1 if config.label_kind == "regression" else 2)
        model = with_head(model, task.head, labels, PROBLEMS[config.label_kind])
    objective = "span_corruption" if model.is_encoder_decoder else "masked" if model.is_encoder_only else "causal"
    key = objective if task.random_batch is None else task.name
    return Workload(model=model, config=config, task=key, precision=precision)


def _precision(dtype: str | None, device: Device, *, quantized: bool) -> Precision:
    """The precision of a run on this device, whose tensors are counted as if they were a CPU's."""
    if device.name == "cpu":
        return choose_precision("cpu", dtype, quantized=quantized)
    if dtype == "int8":
        raise UserError(f"--dtype int8 is for CPUs, and the device is {device.name}: use bfloat16, or leave it out.")
    chosen = dtype or ("bfloat16" if "bfloat16" in device.peak else "float16")
    return Precision(torch.device("cpu"), getattr(torch, chosen), f"of {device.name}")
