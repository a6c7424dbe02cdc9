"""What every fine-tuning run does, whatever it learns."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from typing_extensions import override

from anyformer.checkpoint import inspect, weights_fingerprint
from anyformer.config import ModelConfig
from anyformer.data.disk_cache import key
from anyformer.errors import UserError
from anyformer.finetuning.config import CompleteFinetuneConfig, FinetuneConfig
from anyformer.finetuning.model import build_model, save_model
from anyformer.finetuning.report import Report
from anyformer.model import Transformer
from anyformer.runs.directory import base_name
from anyformer.runs.listing import Terms
from anyformer.tasks.task import terms_of
from anyformer.tokenizer import Tokenizer
from anyformer.training.recipe import Recipe


class BaseFinetuning(Recipe):
    """A model that somebody has trained.

    Raises:
        UserError: no such model, or one without a tokenizer.
    """

    command = "finetune"
    config_type = FinetuneConfig
    _config: CompleteFinetuneConfig
    _report: Report

    def __init__(self, config: FinetuneConfig) -> None:
        base, tokenizer = inspect(config.base, allow_pickle=config.allow_pickle)
        if tokenizer is None:
            raise UserError(f"{config.base} has no tokenizer: put its tokenizer.json beside it.")
        self.name = base_name(config.base)
        self.base: ModelConfig = base
        self.model_config = base
        self.tokenizer: Tokenizer = tokenizer
        weights = weights_fingerprint(config.base, allow_pickle=config.allow_pickle)
        self.base_fingerprint = key(weights, base.to_dict())

    @property
    @override
    def config(self) -> CompleteFinetuneConfig:
        return self._config

    @property
    @override
    def terms(self) -> Terms:
        return terms_of(vars(self._config))

    @override
    def build(self) -> Transformer:
        model = build_model(self._config, self.base)
        self.model_config = model.config
        self.head_is_new = any(name.startswith("head.") for name in model.origin.drawn)
        return model

    @override
    def save(self, model: Transformer, directory: Path) -> str:
        return save_model(model, directory, self.tokenizer, self._config)

    @override
    def measure(self, model: Transformer, directory: Path, step: int) -> Mapping[str, Any]:
        if self.head_is_new and not step:
            return {}
        return self._report.measure(model, directory, step)

    @override
    def report(self, directory: Path) -> Sequence[str]:
        return self._report.conclude(directory, first_loss=not self.head_is_new)

    def _in_steps(self, config: CompleteFinetuneConfig) -> CompleteFinetuneConfig:
        """The config with its length in steps, where that was given in epochs."""
        if config.epochs is None:
            return config
        return replace(config, steps=max(1, math.ceil(config.epochs * self.batches.steps_per_epoch)), epochs=None)
