"""Training from scratch."""

from collections.abc import Sequence
from pathlib import Path

from typing_extensions import override

from anyformer.checkpoint import save
from anyformer.console import Console
from anyformer.families.own import FAMILY as OWN_FAMILY
from anyformer.model import Transformer, build
from anyformer.training.config import CompleteConfig, TrainConfig
from anyformer.training.prepare import TrainingData, prepare
from anyformer.training.recipe import Recipe
from anyformer.training.sample import Sample, take_sample


class Pretraining(Recipe):
    """A fresh model, text, and a tokenizer that is trained on it.

    Raises:
        UserError: see `prepare`.
    """

    command = "train"
    config_type = TrainConfig

    def __init__(self, config: TrainConfig, console: Console) -> None:
        self.data: TrainingData = prepare(config.complete(), console)
        self.batches, self.fingerprint = self.data.batches, self.data.fingerprint
        self.model_config, self.name = self.data.config.model, self.data.config.preset

    @property
    @override
    def config(self) -> CompleteConfig:
        return self.data.config

    @override
    def build(self) -> Transformer:
        return build(self.model_config)

    @override
    def summary(self) -> Sequence[str]:
        return self.data.summary()

    @override
    def save(self, model: Transformer, directory: Path) -> str:
        own = save(model, directory, tokenizer=self.data.tokenizer) == OWN_FAMILY.model_type
        return "in our own format" if own else "a Hugging Face directory"

    @override
    def sample(self, model: Transformer) -> Sample:
        return take_sample(model, self.data.tokenizer, self.data.config, self.batches)
