"""The config of a contender's run."""

from pathlib import Path

from anyformer.compare.request import Request
from anyformer.config import ModelConfig
from anyformer.training.config import TrainConfig

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
