"""How long a step of each contender takes on this machine, measured side by side."""

import statistics
import time
from collections.abc import Sequence
from functools import partial

import torch

from anyformer.compare.corpus import SharedText
from anyformer.compare.recipe import ContenderTraining
from anyformer.compare.request import Request
from anyformer.compare.training import run_config
from anyformer.config import ModelConfig
from anyformer.console import Console
from anyformer.training.resolve import make_strategy, resolve
from anyformer.training.strategies.group import join

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
