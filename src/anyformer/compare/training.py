"""The training of a compared model: its recipe, the time of a step, and the steps that its budget allows."""

import hashlib
import logging
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch
from typing_extensions import override

from anyformer.analysis import step_flops
from anyformer.checkpoint import save
from anyformer.compare.corpus import FromStart, SharedText, Windows, cut, tokenizer_for, window_objective
from anyformer.compare.request import Budget, Request
from anyformer.config import ModelConfig
from anyformer.console import Console
from anyformer.data.batch import Batch, Int64
from anyformer.data.batches import Batches, count_validation_batches, validation_batches
from anyformer.data.disk_cache import key
from anyformer.data.masked import PROBABILITY
from anyformer.data.objectives import SpanCorruption
from anyformer.errors import UserError
from anyformer.fastest_dtype import TYPICAL, Products
from anyformer.model import Transformer
from anyformer.training.batcher import Batcher
from anyformer.training.config import TrainConfig
from anyformer.training.prepare import TrainingData
from anyformer.training.recipe import make_strategy, resolve
from anyformer.training.run import Pretraining
from anyformer.training.sample import Sample
from anyformer.training.strategies.group import join

_ROWS = 16
_VALIDATION_WINDOWS = 64
"""Windows of the half for curves that are evaluated at each point of a curve."""
_POINTS, _LINES = 12, 50
"""Points of a validation curve, and lines of metrics.jsonl."""
_APART = 10
"""Steps between two points, at least: each is an evaluation and a checkpoint."""
_WARM, _STEPS, _ROUNDS = 3, 4, 3
"""Steps of a calibration that are not timed, those that are, and how often."""


def training_batches(
    config: ModelConfig, text: SharedText, batch_size: int, seed: int, seen: Callable[[Int64], None] = lambda ids: None
) -> Batches:
    """The batches that a model is trained on, of one seed the same windows for all; `seen` is called with them."""
    windows = Windows(window_objective(config, text.tokenizer), seen)
    return Batches(text.training.ids, text.context, batch_size, seed, windows)


class WindowTraining(Pretraining):
    """The training of a fresh model on the windows of the text that all models read."""

    def __init__(self, config: TrainConfig, console: Console, *, text: SharedText) -> None:
        del console
        self.config = complete = config.complete()
        self.model_config, self.name = complete.model, config.preset
        batches = training_batches(complete.model, text, complete.batch_size, config.seed)
        windows = Windows(window_objective(complete.model, text.tokenizer))
        # Whole batches of whole windows: nothing is padded, and nothing evaluated twice.
        windows_held_out = min(_VALIDATION_WINDOWS, len(text.for_curves) // text.window)
        rows = min(_ROWS, windows_held_out)
        held_out = text.for_curves[: (windows_held_out - windows_held_out % rows) * text.window]
        size = int(text.bytes_of(held_out[None])[0])
        digest = key(text.training.header.digest, text.held_out.header.digest)
        self.batches = Batcher(
            batches.batch,
            partial(validation_batches, held_out, text.context, rows, windows, config.seed),
            steps_per_epoch=-(-batches.windows_per_epoch // complete.batch_size),
            validation_batches=count_validation_batches(len(held_out), text.context, rows, windows),
            validation_size=(len(held_out) + 1, size) if isinstance(windows.objective, FromStart) else None,
            digest=digest,
            summary=f"tokens     {len(text.training):,} to train on, {len(held_out):,} to validate on",
        )
        self.fingerprint = key(digest, text.tokenizer.fingerprint, type(windows.objective).__name__)
        tokenizer, summary = tokenizer_for(text.tokenizer, complete.objective), [self.batches.summary]
        self.data = TrainingData(complete, tokenizer, self.batches, text.held_out, self.fingerprint, summary)

    @property
    @override
    def products(self) -> Products:
        return TYPICAL  # all models are trained in the same dtype

    @override
    def save(self, model: Transformer, directory: Path) -> str:
        # That no class of Hugging Face's can express a model is no news here, once for each model and seed.
        log = logging.getLogger(save.__module__)
        level = log.level
        log.setLevel(logging.ERROR)
        try:
            return super().save(model, directory)
        finally:
            log.setLevel(level)

    @override
    def sample(self, model: Transformer) -> Sample:
        return Sample((), ())  # what a model writes is part of what is measured


def objective_of(config: ModelConfig) -> str:
    """Objective of `TrainConfig` for a model with these stacks."""
    if config.is_encoder_only:
        return "masked"
    return "span_corruption" if config.is_encoder_decoder else "causal"


def run_config(request: Request, config: ModelConfig, label: str, steps: int, **settings: Any) -> TrainConfig:
    """Config of the run of a model that is called `label`, with more settings of `TrainConfig`."""
    return TrainConfig(
        preset=label,
        model=config,
        objective=objective_of(config),
        data=request.data,
        field=request.field,
        vocab_size=config.vocab_size,
        max_length=config.max_length,
        context=request.context,
        batch_size=request.batch_size,
        steps=steps,
        evaluate_every=max(_APART, steps // _POINTS),
        log_every=max(1, steps // _LINES),
        device=request.device,
        dtype=request.dtype,
        compile=False,
        **settings,
    )


def seconds_per_step(configs: Sequence[ModelConfig], text: SharedText, request: Request) -> list[float]:
    """The time of a training step of each model, which take turns; on a CPU processor time of a single thread.

    That is the work that a step takes: other programs make training longer, and change it by what they take of the
    caches. The best time of each step counts.
    """
    group = join(None, request.device)
    strategies = []
    for config in configs:
        recipe = partial(WindowTraining, text=text)
        made = resolve(run_config(request, config, "calibration", _STEPS), recipe, group, Console(quiet=True))
        torch.manual_seed(0)
        strategies.append((made, make_strategy(None, made.recipe.build(), made.plan, group)))
    is_cpu, threads = all(made.plan.precision.device.type == "cpu" for made, _ in strategies), torch.get_num_threads()
    clock, best = time.thread_time if is_cpu else time.perf_counter, [[math.inf] * _STEPS for _ in strategies]
    torch.set_num_threads(1 if is_cpu else threads)
    try:
        for number in range(-_WARM, _STEPS * _ROUNDS):
            step = number % _STEPS
            for times, (made, strategy) in zip(best, strategies, strict=True):
                begin = clock()
                float(strategy.step(step, made.recipe.batches.batch(step), 1e-4).sum())  # reading it waits for its end
                times[step] = min(times[step], clock() - begin) if number >= 0 else math.inf
    finally:
        torch.set_num_threads(threads)
    for _, strategy in strategies:
        strategy.close()
    group.close()
    return [statistics.fmean(times) for times in best]


@dataclass(frozen=True)
class Allowance:
    """Steps of a run within its budget, all their tokens of text and FLOPs, and SHA-256 of all ids in order."""

    steps: int
    tokens: int
    flops: float
    digest: str


def allow(
    budget: Budget, config: ModelConfig, text: SharedText, batch_size: int, seed: int, seconds: float | None = None
) -> Allowance:
    """Count the steps that a budget allows, to the nearest, and what they read. Raises UserError as `require_step`."""
    require_step(budget, config, text, batch_size, seed, seconds)
    windows: list[Int64] = []
    batches = training_batches(config, text, batch_size, seed, windows.append)
    steps, flops, spent, digest = 0, 0, 0.0, hashlib.sha256()
    batch = batches.batch(0)
    while spent + (cost := _cost(budget, config, batch, text, seconds)) / 2 <= budget.amount:
        digest.update(windows.pop().tobytes())
        steps, flops, spent = steps + 1, flops + _batch_flops(config, batch), spent + cost
        batch = batches.batch(steps)
    return Allowance(steps, steps * batch_size * text.window, flops, digest.hexdigest())


def require_step(
    budget: Budget, config: ModelConfig, text: SharedText, batch_size: int, seed: int, seconds: float | None = None
) -> None:
    """Raise UserError where a budget is too small for one step, which takes `seconds`."""
    batch = training_batches(config, text, batch_size, seed).batch(0)
    cost = _cost(budget, config, batch, text, seconds)
    if cost > budget.amount:
        raise UserError(
            f"A budget of {budget} is too small for one step, which takes {cost:,.4g}: raise --{budget.kind}, or lower "
            "--batch-size or --context."
        )


def _cost(budget: Budget, config: ModelConfig, batch: Batch, text: SharedText, seconds: float | None) -> float:
    if budget.kind == "minutes":
        return (seconds or 0.0) / 60
    return float(len(batch.tokens) * text.window if budget.kind == "tokens" else _batch_flops(config, batch))


def _batch_flops(config: ModelConfig, batch: Batch) -> int:
    rows, tokens = batch.tokens.shape
    return _step_flops(config, rows, tokens, 0 if batch.source is None else batch.source.shape[1], batch.predicted)


_step_flops = lru_cache(maxsize=1 << 12)(step_flops)


def flops_per_token(config: ModelConfig, window: int) -> float:
    """Operations of training for a token of text, as the mean over what a model does with windows."""
    # Tokens, tokens of the source, and targets of a row, of each kind of batch.
    shapes = [(window, 0, window)]
    if config.is_encoder_only:
        shapes = [(window + 2, 0, max(1, round(PROBABILITY * window)))]
    elif config.is_encoder_decoder:
        source, targets = SpanCorruption((), 0, 0, 0).lengths(window)
        read = cut(window, 0.5)
        shapes = [(targets, source, targets), (window - read, read + 1, window - read)]
    return sum(_step_flops(config, 1, *shape) for shape in shapes) / len(shapes) / window
