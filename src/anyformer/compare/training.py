"""The training of a contender: its config, its recipe, and the time of a step."""

import logging
import statistics
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch
from typing_extensions import override

from anyformer.checkpoint import save
from anyformer.compare.corpus import SharedText, tokenizer_for
from anyformer.compare.request import Request
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
from anyformer.training.recipe import Recipe, make_strategy, resolve
from anyformer.training.sample import Sample
from anyformer.training.strategies.group import join

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


_POINTS, _LINES = 12, 50
"""Points of a validation curve, and lines of metrics.jsonl."""
_APART = 10
"""Steps between two points, at least: each is an evaluation and a checkpoint."""


def objective_of(config: ModelConfig) -> str:
    """Objective of `TrainConfig` for a model with these stacks."""
    if config.is_encoder_only:
        return "masked"
    return "span_corruption" if config.is_encoder_decoder else "causal"


def run_config(
    request: Request,
    config: ModelConfig,
    label: str,
    *,
    steps: int,
    seed: int = 0,
    learning_rate: float | None = None,
    name: str | None = None,
    runs: Path = Path("runs"),
    tokenizer: Path | None = None,
) -> TrainConfig:
    """How a contender is trained.

    Args:
        label: what it is called.
        tokenizer: where the shared one is.
    """
    return TrainConfig(
        preset=label,
        model=config,
        objective=objective_of(config),
        data=request.data,
        field=request.field,
        tokenizer=None if tokenizer is None else str(tokenizer),
        vocab_size=config.vocab_size,
        max_length=config.max_length,
        context=request.context,
        batch_size=request.batch_size,
        steps=steps,
        seed=seed,
        learning_rate=learning_rate,
        name=name,
        runs=runs,
        evaluate_every=max(_APART, steps // _POINTS),
        log_every=max(1, steps // _LINES),
        device=request.device,
        dtype=request.dtype,
        compile=False,
    )


_WARM, _ROUNDS = 3, 12


def seconds_per_step(configs: Sequence[ModelConfig], text: SharedText, request: Request) -> list[float]:
    """The median time of a training step of each model; they take turns, so that other work on the machine is fair.

    Raises:
        UserError: a model can't be trained.
    """
    group = join(None, request.device)
    strategies = []
    for config in configs:
        recipe = partial(ContenderTraining, text=text)
        made = resolve(run_config(request, config, "calibration", steps=_ROUNDS), recipe, group, Console(quiet=True))
        torch.manual_seed(0)
        strategies.append((made, make_strategy(None, made.recipe.build(), made.plan, group)))
    taken: list[list[float]] = [[] for _ in strategies]
    for step in range(_WARM + _ROUNDS):
        for times, (made, strategy) in zip(taken, strategies, strict=True):
            begin = time.perf_counter()
            float(strategy.step(step, made.recipe.batches.batch(step), 1e-4).sum())  # reading it waits for its end
            times.append(time.perf_counter() - begin)
    for _, strategy in strategies:
        strategy.close()
    group.close()
    return [statistics.median(times[_WARM:]) for times in taken]
