"""Does the jobs of test_xla.py, a line of JSON each, on as many virtual devices as CPU_NUM_DEVICES says."""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from tests.training.strategies_worker import with_dropout
from torch import Tensor

from anyformer.cli import main as anyformer
from anyformer.config import ModelConfig
from anyformer.data.batch import IGNORED, Batch
from anyformer.families import preset
from anyformer.model import Transformer, build
from anyformer.training.averaging import make_average
from anyformer.training.optimizer import flatten_state, make_optimizer
from anyformer.training.precision import Precision
from anyformer.training.recipe import make_strategy
from anyformer.training.strategies.base import Plan, Strategy
from anyformer.training.strategies.group import join

STEPS, ROWS, TIME, VOCAB = 8, 8, 64, 64
PRESETS = {
    "gpt2": "gpt2-nano",
    "llama": "llama-nano",
    "bert": "bert-tiny",
    "t5": "t5-nano",
    "2017": "transformer-tiny",
}


def model(name: str, dropout: float, layers: int) -> Transformer:
    config = preset(PRESETS[name])
    stacks = {stack: min(layers, getattr(config, stack)) for stack in ("encoder_layers", "decoder_layers")}
    heads = {"attention.heads": 2, "attention.kv_heads": None, "attention.head_dim": None}
    sizes = {"vocab_size": VOCAB, "d_model": 32, "feed_forward.width": 48, "max_length": TIME}
    torch.manual_seed(0)
    return build(with_dropout(config.replace(**sizes, **heads, **stacks), dropout))


def batch(config: ModelConfig, step: int, rows: int = ROWS, time: int = TIME) -> Batch:
    """Texts of different lengths, some tokens of which are targets."""
    chance = np.random.default_rng(step)
    tokens, targets, source = chance.integers(5, VOCAB, (3, rows, time))
    real = np.arange(time) < chance.integers(2, time + 1, (rows, 1))
    targets[~real] = IGNORED
    if config.is_encoder_decoder:
        return Batch(tokens, targets, source=source, source_mask=real[::-1].copy())
    if config.is_encoder_only:
        targets[chance.random(targets.shape) < 0.7] = IGNORED
        return Batch(tokens, targets, real)
    return Batch(tokens, targets)


def train(
    name: str,
    engine: str | None = None,
    *,
    dtype: str = "float32",
    dropout: float = 0.0,
    layers: int = 2,
    steps: Sequence[int] = range(STEPS),
    rates: Mapping[int | str, float] | None = None,
    load: str | None = None,
    save: str | None = None,
    sizes: Sequence[tuple[int, int]] = ((ROWS, TIME),),
    optimizer: str = "adamw",
    average: str | None = None,
    **settings: Any,
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Train, or go on from a checkpoint.

    Returns:
        The engine; loss and length of the gradient of each step; three evaluations, the first before all steps; counts
        of XLA after the first evaluation, after each step, and after the last evaluations. And the weights.
    """
    group = join(engine, "cpu")
    plan = Plan(
        Precision(torch.device("xla" if engine else "cpu"), getattr(torch, dtype), "for a test"),
        lambda model: make_optimizer(optimizer, model, 1.0),
        average=make_average(average),
        grad_clip=0.5,
        **settings,
    )
    strategy = make_strategy(engine, model(name, dropout, layers), plan, group)
    config = strategy.model.config
    if load is not None:
        strategy.load(Path(load))
    counts = _Counts(engine is not None)
    evaluated = [strategy.evaluate(batch(config, 1000))]
    counts.note()
    figures = list[Tensor]()
    for step in steps:
        given = {int(number): rate for number, rate in (rates or {}).items()}  # JSON has texts as keys
        rate = given.get(step, 1e-3 * (1 + step % 3))
        figures.append(strategy.step(step, batch(config, step, *sizes[step % len(sizes)]), rate))
        counts.note()
    evaluated += [strategy.evaluate(batch(config, number)) for number in (1000, 1001)]
    counts.note()
    result = {
        "said": str(strategy),
        "figures": [each.tolist() for each in figures],
        "evaluated": [float(nats) for nats in evaluated],
        "sharded": _sharded(strategy) if engine else [],
        **vars(counts),
    }
    if save is not None:
        Path(save).mkdir()
        strategy.save(Path(save))
    with strategy.gathered() as whole:
        assert whole is not None
        assert whole.device.type == "cpu"
        weights = {key: value.clone() for key, value in whole.state_dict().items()}
    strategy.close()
    return result, weights


def command(argv: list[str]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Run anyformer."""
    counts = _Counts(True)
    status = anyformer.main(argv)
    counts.note()
    return {"status": status, **vars(counts)}, {}


class _Counts:
    """Counts of XLA: programs that it compiled, values that the host waited for, operations that it left to torch."""

    def __init__(self, counts: bool) -> None:
        self.compiled, self.waits, self.fallbacks = list[int](), list[int](), list[str]()
        if counts:
            import torch_xla.debug.metrics as metrics

            metrics.clear_all()

    def note(self) -> None:
        if (metrics := sys.modules.get("torch_xla.debug.metrics")) is None:
            return
        compiled, waits = (metrics.metric_data(name) for name in ("CompileTime", "TransferFromDeviceTime"))
        self.compiled.append(compiled[0] if compiled else 0)
        self.waits.append(waits[0] if waits else 0)
        self.fallbacks = [name for name in metrics.counter_names() if name.startswith("aten::")]


def _sharded(strategy: Strategy) -> list[str]:
    """The names of weights and of the optimizer's state of which each device has but a piece."""
    import torch_xla

    tensors = dict(strategy.model.named_parameters())
    state = flatten_state(strategy.optimizer, strategy._names())
    tensors |= {f"optimizer.{name}": value for name, value in state.items() if name.startswith("exp")}
    specs = {name: torch_xla._XLAC._get_xla_sharding_spec(tensor) for name, tensor in tensors.items()}
    return [name for name, spec in specs.items() if "devices=" in spec]


JOBS = {"train": train, "command": command}


def main() -> None:
    answers = sys.stdout
    sys.stdout = sys.stderr
    for line in sys.stdin:
        job: dict[str, Any] = json.loads(line)
        kind, out = job.pop("kind"), Path(job.pop("out"))
        try:
            result, weights = JOBS[kind](**job)
        except Exception:  # the next job may do better
            result, weights = {"error": traceback.format_exc()}, {}
        if weights:
            save_file(weights, out)
        print(json.dumps(result), file=answers, flush=True)


if __name__ == "__main__":
    main()
