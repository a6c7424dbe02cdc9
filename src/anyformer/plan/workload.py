"""Workloads: the model, the loss and the batch of one training step, with random tokens in the place of data."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from anyformer.adapters import add_adapter
from anyformer.config import ModelConfig
from anyformer.data.batch import IGNORED, Batch, Rng
from anyformer.data.span_corruption import SpanCorruption
from anyformer.finetuning.config import CompleteFinetuneConfig
from anyformer.finetuning.model import train_in_float32
from anyformer.kernels.quantization import GROUP, QuantizedWeight
from anyformer.model import Transformer, build
from anyformer.quantization import bits_per_module, quantizable, quantization, quantize, set_weight
from anyformer.tasks import TASKS
from anyformer.tasks.seq2seq import random_pairs
from anyformer.tasks.task import Task, random_ids
from anyformer.training.config import CompleteConfig, CompleteRunConfig
from anyformer.training.losses import LossModule
from anyformer.training.precision import Precision

STACKS = ("encoder_layers", "decoder_layers")
"""The fields of a model's numbers of layers."""
_MASKED = 0.15
"""Share of the tokens that a masked language model predicts (Devlin et al. 2019, section 3.1)."""


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
