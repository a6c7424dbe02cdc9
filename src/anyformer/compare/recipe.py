"""The training of a contender, as the ordinary training loop runs it."""

import logging
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from typing_extensions import override

from anyformer.checkpoint import save
from anyformer.compare.corpus import SharedText, tokenizer_for
from anyformer.compare.windows import FromStart, Windows, reading
from anyformer.config import ModelConfig
from anyformer.console import Console
from anyformer.data.batch import Batch
from anyformer.data.batches import Batches, count_validation_batches, validation_batches
from anyformer.data.disk_cache import key
from anyformer.families.own import FAMILY as OWN_FAMILY
from anyformer.model import Transformer, build
from anyformer.training.batcher import Batcher
from anyformer.training.config import CompleteConfig, TrainConfig
from anyformer.training.recipe import Recipe
from anyformer.training.sample import Sample

_ROWS = 16
_VALIDATION_WINDOWS = 64
"""Windows of the half for curves that are evaluated at each point of a curve."""


def windows(config: ModelConfig, text: SharedText) -> Windows:
    """Windows as a model of this config reads them. Raises UserError where the tokenizer lacks a token for it."""
    return Windows(reading(config, text.tokenizer))


def training_batches(config: ModelConfig, text: SharedText, batch_size: int, seed: int) -> Batches:
    """The batches that a contender is trained on: of one seed the same windows for all."""
    return Batches(text.training.ids, text.context, batch_size, seed, windows(config, text))


class ContenderTraining(Recipe):
    """A fresh model on the windows that all contenders read.

    Args:
        config: of the run.
        text: shared by all contenders.
    """

    command = "train"
    config_type = TrainConfig

    def __init__(self, config: TrainConfig, console: Console, *, text: SharedText) -> None:
        del console
        self._config = config.complete()
        self.model_config, self.name = self._config.model, config.preset
        self.tokenizer = tokenizer_for(text.tokenizer, self._config.objective)
        made = windows(self.model_config, text)
        batches = training_batches(self.model_config, text, self._config.batch_size, config.seed)
        # Whole batches of whole windows: nothing is padded, and nothing evaluated twice.
        count = min(_VALIDATION_WINDOWS, len(text.for_curves) // text.window)
        rows = min(_ROWS, count)
        held_out = text.for_curves[: (count - count % rows) * text.window]
        validation = partial(validation_batches, held_out, text.context, rows, made, config.seed)

        def validation_every(every: int = 1) -> Iterator[Batch]:
            return validation(every=every)

        size = int(text.bytes_of(held_out[None])[0])
        digest = key(text.training.header.digest, text.held_out.header.digest)
        self.batches = Batcher(
            batches.batch,
            validation_every,
            steps_per_epoch=-(-batches.windows_per_epoch // self._config.batch_size),
            validation_batches=count_validation_batches(len(held_out), text.context, rows, made),
            validation_size=(len(held_out) + 1, size) if isinstance(made.reading, FromStart) else None,
            digest=digest,
            summary=f"tokens     {len(text.training):,} to train on, {len(held_out):,} to validate on",
        )
        self.fingerprint = key(digest, text.tokenizer.fingerprint, type(made.reading).__name__)

    @property
    @override
    def config(self) -> CompleteConfig:
        return self._config

    @override
    def build(self) -> Transformer:
        return build(self.model_config)

    @override
    def summary(self) -> Sequence[str]:
        return [self.batches.summary]

    @override
    def save(self, model: Transformer, directory: Path) -> str:
        # That no class of Hugging Face's can express a model is no news here, once for each contender and seed.
        with _quiet(logging.getLogger(save.__module__)):
            own = save(model, directory, tokenizer=self.tokenizer) == OWN_FAMILY.model_type
        return "in our own format" if own else "a Hugging Face directory"

    @override
    def sample(self, model: Transformer) -> Sample:
        return Sample((), ())  # what a contender writes is part of what is measured


@contextmanager
def _quiet(log: logging.Logger) -> Generator[None]:
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)
