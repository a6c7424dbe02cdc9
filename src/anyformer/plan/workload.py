"""Workloads of plans: the flags of `train` and `finetune`, and a model without its data."""

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

import torch

from anyformer.config import ModelConfig
from anyformer.errors import UserError
from anyformer.families import with_head
from anyformer.finetuning.config import FinetuneConfig, complete
from anyformer.finetuning.model import PROBLEMS
from anyformer.plan.devices import Device
from anyformer.plan.step import Workload
from anyformer.spec import Contender
from anyformer.tasks import TASKS
from anyformer.tokenizer.training import parse_spec
from anyformer.training.config import BATCH_TOKENS, TrainConfig
from anyformer.training.precision import Precision, choose_precision

__all__ = ["fine_tunes", "make_workload"]

_TRAINED = {field.name for field in fields(TrainConfig)}
_TUNED = {field.name for field in fields(FinetuneConfig)}
_ONLY_TUNED, _ONLY_TRAINED = _TUNED - _TRAINED, _TRAINED - _TUNED


def fine_tunes(values: Mapping[str, Any]) -> bool:
    """Whether these settings are of `finetune` and not of `train`."""
    return not _ONLY_TUNED.isdisjoint(values)


def make_workload(contender: Contender, values: Mapping[str, Any], device: Device) -> Workload:
    """The step of a run with these settings.

    Args:
        contender: a model with weights is fine-tuned, unless a setting is of `train` alone.
        values: fields of `TrainConfig` and `FinetuneConfig`.

    Raises:
        UserError: settings that contradict each other, a task that the model can't do, a context that it has no
            positions for, a batch that the processes can't share.
    """
    tunes = fine_tunes(values) or (contender.directory is not None and _ONLY_TRAINED.isdisjoint(values))
    given = {name: value for name, value in values.items() if name not in ("device", "data", "validation")}
    if given.get("engine") == "deepspeed":
        raise UserError("plan counts ddp and fsdp; DeepSpeed's stage 3 shards what fsdp does: plan --engine fsdp.")
    precision = _precision(given.get("dtype"), device, quantized=bool(given.get("quantize")))
    given["dtype"] = precision.name
    made = _finetuning(contender, given, precision) if tunes else _training(contender, given, precision)
    config = made.config
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
    return replace(made, in_heap=device.name == "cpu")


def _training(contender: Contender, values: Mapping[str, Any], precision: Precision) -> Workload:
    model = contender.config
    if (spec := values.get("tokenizer")) is not None and (size := parse_spec(spec)[1]) is not None:
        sources = {} if model.source_vocab_size is None else {"source_vocab_size": size}
        model = model.replace(vocab_size=size, **sources)
    known = {name: value for name, value in values.items() if name in _TRAINED}
    config = TrainConfig(preset=contender.name, model=model, **known).complete()
    return Workload(model=config.model, config=config, task=config.objective, precision=precision)


def _finetuning(contender: Contender, values: Mapping[str, Any], precision: Precision) -> Workload:
    model = contender.config
    known = {name: value for name, value in values.items() if name in _TUNED and name != "base"}
    asked = FinetuneConfig(base=contender.name, **known)
    task = TASKS[asked.task or next(iter(TASKS))]
    if (instead := task.instead(model)) is not None:
        task, _ = instead
    task.check_model(model, contender.name)
    config = complete(asked, model, task.name)
    if task.head != "language_model" and model.head.kind != task.head:
        labels = config.labels or (1 if config.label_kind == "regression" else 2)
        model = with_head(model, task.head, labels, PROBLEMS[config.label_kind])
    key = _objective(model) if task.random_batch is None else task.name
    return Workload(model=model, config=config, task=key, precision=precision)


def _objective(model: ModelConfig) -> str:
    if model.is_encoder_decoder:
        return "span_corruption"
    return "masked" if model.is_encoder_only else "causal"


def _precision(dtype: str | None, device: Device, *, quantized: bool) -> Precision:
    """The precision of a run on this device, whose tensors are counted as if they were a CPU's."""
    if device.name == "cpu":
        return choose_precision("cpu", dtype, quantized=quantized)
    if dtype == "int8":
        raise UserError(f"--dtype int8 is for CPUs, and the device is {device.name}: use bfloat16, or leave it out.")
    chosen = dtype or ("bfloat16" if "bfloat16" in device.peak else "float16")
    return Precision(torch.device("cpu"), getattr(torch, chosen), f"of {device.name}")
