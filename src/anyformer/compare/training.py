"""The config of a contender's run."""

import statistics
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch

from anyformer.compare.corpus import SharedText
from anyformer.compare.recipe import ContenderTraining
from anyformer.compare.request import Request
from anyformer.config import ModelConfig
from anyformer.console import Console
from anyformer.training.config import TrainConfig
from anyformer.training.resolve import make_strategy, resolve
from anyformer.training.strategies.group import join

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
