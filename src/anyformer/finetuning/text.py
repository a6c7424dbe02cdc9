"""Continued pretraining: a model goes on with what it was trained for, on your own text."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from typing_extensions import override

from anyformer.checkpoint import inspect
from anyformer.console import Console
from anyformer.errors import UserError
from anyformer.finetuning.config import CompleteFinetuneConfig, FinetuneConfig, complete
from anyformer.finetuning.model import build_model, save_model
from anyformer.finetuning.report import Report
from anyformer.model import Transformer
from anyformer.training.config import TrainConfig
from anyformer.training.prepare import prepare
from anyformer.training.recipe import Recipe
from anyformer.training.run_config import RunConfig
from anyformer.training.sample import Sample, take_sample

_BATCH_TOKENS = 4096
"""Tokens of a batch, about."""


class TextFinetuning(Recipe):
    """A model that somebody has trained, and text: a decoder predicts it, an encoder fills in what is masked, and an
    encoder-decoder restores corrupted spans.

    Raises:
        UserError: no such model, one without a language-model head or a tokenizer, or text that can't be read.
    """

    command = "finetune"
    config_type = FinetuneConfig

    def __init__(self, config: FinetuneConfig, console: Console) -> None:
        base, tokenizer = inspect(config.base, allow_pickle=config.allow_pickle)
        if tokenizer is None:
            raise UserError(f"{config.base} has no tokenizer: put its tokenizer.json beside it.")
        if base.head.kind != "language_model":
            raise UserError(f"{config.base} has no language-model head, so it learns nothing from plain text.")
        self.name, self.model_config, self.tokenizer = Path(config.base).name, base, tokenizer
        made = complete(config, base, "text")
        batch_size = config.batch_size or max(1, _BATCH_TOKENS // made.context)
        shared = {field.name: getattr(made, field.name) for field in fields(RunConfig)}
        shared |= {"batch_size": batch_size, "steps": None, "minutes": None}
        train = TrainConfig(
            preset=made.label,
            model=base,
            tokenizer=self.name,
            field=config.roles.get("text", "text"),
            vocab_size=base.vocab_size,
            max_length=base.max_length,
            document_masking=made.packing and base.is_decoder_only,
            **shared,
        )
        self._data = prepare(train.complete(), console, tokenizer)
        self.batches, self.fingerprint = self._data.batches, self._data.fingerprint
        self._config = replace(made, batch_size=batch_size)
        if made.epochs is not None:
            steps = max(1, math.ceil(made.epochs * self.batches.steps_per_epoch))
            self._config = replace(self._config, steps=steps, epochs=None)
        self._report = Report(self._config, tokenizer)

    @property
    @override
    def config(self) -> CompleteFinetuneConfig:
        return self._config

    @override
    def build(self) -> Transformer:
        return build_model(self._config, self.model_config)

    @override
    def summary(self) -> Sequence[str]:
        return self._data.summary()

    @override
    def save(self, model: Transformer, directory: Path) -> str:
        return save_model(model, directory, self.tokenizer, self._config)

    @override
    def measure(self, model: Transformer, directory: Path, step: int) -> Mapping[str, Any]:
        return self._report.measure(model, directory, step)

    @override
    def report(self, directory: Path) -> Sequence[str]:
        return self._report.conclude(directory)

    @override
    def sample(self, model: Transformer) -> Sample:
        return take_sample(model, self.tokenizer, self._config, self.batches)
