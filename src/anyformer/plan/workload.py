"""Workloads: the model, the loss and the batch of one training step, with random tokens in the place of data.

They are made of the flags of `train` and `finetune`, or of a run's own settings.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from anyformer.adapters import add_adapter
from anyformer.config import ModelConfig
from anyformer.data.batch import IGNORED, Batch, Rng
from anyformer.data.objectives import SpanCorruption
from anyformer.errors import UserError
from anyformer.fastest_dtype import INT8
from anyformer.finetuning.config import CompleteFinetuneConfig, FinetuneConfig, complete, read_fine_tuning
from anyformer.finetuning.model import train_in_float32, with_head_of_task
from anyformer.kernels.quantization import GROUP, QuantizedWeight
from anyformer.limits import path_inside
from anyformer.model import Transformer, build
from anyformer.plan.devices import Device
from anyformer.quantization import bits_per_module, quantizable, quantization, quantize, set_weight
from anyformer.runs.directory import CONFIG, MODEL
from anyformer.schema import flag
from anyformer.spec import SpecifiedModel, read_config
from anyformer.tasks import TASKS
from anyformer.tasks.seq2seq import random_pairs
from anyformer.tasks.task import Task, random_ids
from anyformer.tokenizer.training import parse_spec
from anyformer.training.config import BATCH_TOKENS, ONE_PROCESS, CompleteConfig, CompleteRunConfig, TrainConfig
from anyformer.training.config_file import read_yaml
from anyformer.training.losses import LossModule
from anyformer.training.precision import Precision, choose_precision
from anyformer.training.recipe import step_products

STACKS = ("encoder_layers", "decoder_layers")
"""The fields of a model's numbers of layers."""
_MASKED = 0.15
"""Share of the tokens that a masked language model predicts (Devlin et al. 2019, section 3.1)."""
_OF_TRAIN = {field.name for field in fields(TrainConfig)}
_OF_FINETUNE = {field.name for field in fields(FinetuneConfig)}
SETTINGS = _OF_TRAIN | _OF_FINETUNE
"""Names of all settings of a run."""
_ELSEWHERE = {
    *("model", "preset", "base", "tokenizer", "vocab_size", "max_length"),
    *("device", "runs", "name", "minutes", "epochs"),
}
"""Fields that the model in the run's directory settles, or that say nothing of a step."""


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
        fewer: dict[str, Any] = {name: min(getattr(self.model, name), layers) for name in STACKS}
        if self.model.other_layers is not None and self.model.other_layers.first:
            fewer["other_layers"] = {"first": self.model.other_layers.first[0]}
        return replace(self, model=self.model.replace(**fewer))

    def batch(self) -> Batch:
        """A batch of random tokens, each text as long as the context."""
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


def _causal(config: CompleteRunConfig, model: ModelConfig, rng: Rng) -> Batch:
    windows = rng.integers(model.vocab_size, size=(config.batch_size, config.context + 1))
    documents = np.zeros((config.batch_size, config.context), np.int64)
    is_apart = bool(getattr(config, "document_masking", False) or getattr(config, "packing", False))
    return Batch(windows[:, :-1].copy(), windows[:, 1:].copy(), documents=documents if is_apart else None)


def _masked(config: CompleteRunConfig, model: ModelConfig, rng: Rng) -> Batch:
    tokens = random_ids(config, model, rng)
    hidden = rng.permuted(np.arange(tokens.size) < _MASKED * tokens.size).reshape(tokens.shape)
    return Batch(tokens, np.where(hidden, tokens, IGNORED))


def _span_corruption(config: CompleteRunConfig, model: ModelConfig, rng: Rng) -> Batch:
    objective = SpanCorruption((0,) * config.context, 0, 0, 0)
    source, target = objective.lengths(objective.stride(config.context))
    return random_pairs(model, rng, config.batch_size, source, target)


def _seq2seq(config: CompleteRunConfig, model: ModelConfig, rng: Rng) -> Batch:
    return random_pairs(model, rng, max(1, config.batch_tokens // config.context), config.context, config.context)


OBJECTIVES: dict[str, Callable[[CompleteRunConfig, ModelConfig, Rng], Batch]] = {
    "causal": _causal,
    "masked": _masked,
    "span_corruption": _span_corruption,
    "seq2seq": _seq2seq,
}
"""The batch of all processes, by objective, given a config with its batch size and context, and a model."""


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
    planned, config, task = _finetuning(model, settings) if tunes else _training(model, settings)
    if config.batch_size * config.context > BATCH_TOKENS:
        raise UserError(
            f"--batch-size {config.batch_size} and --context {config.context} make a batch of more than "
            f"{BATCH_TOKENS:,} tokens: lower one of them."
        )
    if config.batch_size % config.processes:
        less = config.batch_size // config.processes * config.processes
        raise UserError(
            f"--processes {config.processes} can't share --batch-size {config.batch_size} evenly: take "
            f"{f'{less} or ' if less else ''}{less + config.processes}."
        )
    precision = _precision(planned, config, device)
    config = replace(config, dtype=precision.name)
    return Workload(model=planned, config=config, task=task, precision=precision, in_heap=device.name == "cpu")


def _training(specified: SpecifiedModel, settings: Mapping[str, Any]) -> tuple[ModelConfig, CompleteConfig, str]:
    """The model, the config and the objective of a run of `train`."""
    model = specified.config
    if (spec := settings.get("tokenizer")) is not None and (size := parse_spec(spec)[1]) is not None:
        sources = {} if model.source_vocab_size is None else {"source_vocab_size": size}
        model = model.replace(vocab_size=size, **sources)
    own = {name: value for name, value in settings.items() if name in _OF_TRAIN}
    config = TrainConfig(preset=specified.spec, model=model, **own).complete()
    return config.model, config, config.objective


def _finetuning(
    specified: SpecifiedModel, settings: Mapping[str, Any]
) -> tuple[ModelConfig, CompleteFinetuneConfig, str]:
    """The model with its head, the config and the key of the batch's shape of a run of `finetune`."""
    model = specified.config
    own = {name: value for name, value in settings.items() if name in _OF_FINETUNE and name != "base"}
    incomplete = FinetuneConfig(base=specified.spec, **own)
    task = TASKS[incomplete.task or next(iter(TASKS))]
    if (instead := task.instead(model)) is not None:
        task, _ = instead
    task.check_model(model, specified.spec)
    config = complete(incomplete, model, task.name)
    model = with_head_of_task(model, config)
    objective = "span_corruption" if model.is_encoder_decoder else "masked" if model.is_encoder_only else "causal"
    return model, config, objective if task.random_batch is None else task.name


def _precision(model: ModelConfig, config: CompleteRunConfig, device: Device) -> Precision:
    """The precision of a run on this device, whose tensors are counted as if they were a CPU's."""
    dtype = config.dtype
    if device.name == "cpu":
        return choose_precision("cpu", dtype, lambda: step_products(model, config), quantized=config.is_quantized)
    if dtype == INT8:
        raise UserError(f"--dtype int8 is for CPUs, and the device is {device.name}: use bfloat16, or leave it out.")
    chosen = dtype or ("bfloat16" if "bfloat16" in device.peak else "float16")
    return Precision(torch.device("cpu"), getattr(torch, chosen), f"of {device.name}")
