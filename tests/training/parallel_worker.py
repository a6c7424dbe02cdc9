"""Trains in four processes what test_tensor_parallel.py and test_context_parallel.py ask for."""

from __future__ import annotations

import json
import socket
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from anyformer.adapters import LoraConfig, add_adapter
from anyformer.adapters.modules import parameters, targets
from anyformer.config import (
    AttentionConfig,
    EmbeddingConfig,
    ExpertsConfig,
    FeedForwardConfig,
    HeadConfig,
    ModelConfig,
    NormConfig,
    PositionConfig,
)
from anyformer.config.block import LatentConfig
from anyformer.data.batch import IGNORED, Batch
from anyformer.model import Transformer
from anyformer.model import build as draw
from anyformer.training.recipe import cut_of, make_strategy
from anyformer.training.strategies.group import Group
from tests.forked import forks
from tests.generation.models import BOTH, GATED, RMS, ROTARY, VOCAB, WRITERS, build, config
from tests.training.conftest import plan
from tests.training.strategies_worker import with_dropout

STEPS = 3
ENCODER = {"encoder_layers": 2, "decoder_layers": 0}
LATENT = LatentConfig(rank=6, rotary_dim=4, value_dim=5, query_rank=8)
EXPERTS = ExpertsConfig(count=6, used=2, shared=1)
DISTANCES = {"relative_bias": True, "buckets": 8, "max_distance": 16}

_EXTRA = {
    "latent": config(position=ROTARY, norm=RMS, attention=AttentionConfig(heads=4, head_dim=10, latent=LATENT)),
    "latent, no queries, shared experts": config(
        position=ROTARY,
        attention=AttentionConfig(heads=4, head_dim=10, latent=replace(LATENT, query_rank=None)),
        feed_forward=replace(GATED, experts=EXPERTS),
    ),
    "disentangled": config(
        **ENCODER,
        position=PositionConfig(kind="disentangled", buckets=8, max_distance=16),
        embedding=EmbeddingConfig(norm=True),
    ),
    "masked": config(
        **ENCODER,
        embedding=EmbeddingConfig(norm=True, segments=2),
        head=HeadConfig(transform="gelu", bias="learned"),
    ),
    "learned and relative": config(
        **ENCODER,
        position=PositionConfig(kind="learned", **DISTANCES),
        embedding=EmbeddingConfig(norm=True, padding=1),
        head=HeadConfig(transform="gelu", bias="learned"),
    ),
    "one block three times": config(encoder_layers=3, decoder_layers=0, distinct_layers=1, embedding=EmbeddingConfig()),
    "two networks": config(**BOTH, decoder_feed_forward=FeedForwardConfig(width=12), norm=RMS),
    "post": config(**ENCODER, norm=NormConfig(placement="post")),
}


def _even(model: ModelConfig) -> ModelConfig:
    """The model with experts that two can share, and that nothing balances, which each process would by its rows."""
    experts = model.feed_forward.experts
    if experts is None:
        return model
    own = replace(experts, count=experts.count + experts.count % 2, balance=0.0)
    return model.replace(feed_forward=replace(model.feed_forward, experts=own))


MODELS = {name: _even(model) for name, model in (WRITERS | _EXTRA).items()}

Result = tuple[list[float], dict[str, Tensor]]


def batch(model: ModelConfig, step: int, rows: int = 5, time: int = 11) -> Batch:
    """Rows of a length that nobody divides evenly, of which one has few targets and some are padded."""
    chance = np.random.default_rng(step)
    tokens, targets = (chance.integers(5, VOCAB, (rows, time)) for _ in range(2))
    targets[1:2, 4:] = IGNORED
    if model.is_encoder_decoder:
        source = chance.integers(5, VOCAB, (rows, 7))
        return Batch(tokens, targets, source=source, source_mask=np.arange(7) < chance.integers(2, 8, (rows, 1)))
    if not model.is_encoder_only:
        return Batch(tokens, targets)
    mask = np.arange(time) < chance.integers(min(time, 5), time + 1, (rows, 1))
    targets[~mask] = IGNORED
    return Batch(tokens, targets, mask=mask)


def _with_adapters(model: Transformer) -> Transformer:
    """The model with an adapter on each layer, the embedding, the head and experts among them."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        names = {"target_modules": [*targets(model)], "target_parameters": [*parameters(model)]}
        add_adapter(model, LoraConfig(rank=2, **names))
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name.endswith(".b"):
                    parameter.normal_(std=0.1)
    return model


def _check_first_weights(group: Group, model: ModelConfig, **layout: int) -> None:
    """Assert that weights that are drawn by shard are those of a whole model."""
    torch.manual_seed(3)
    whole = Transformer(model).state_dict()
    torch.manual_seed(3)
    engine = "fsdp" if group.world_size > 1 else None
    drawn = draw(model, cut_of(engine, plan(), group, **layout))
    strategy = make_strategy(engine, drawn, plan(), group, **layout)
    with strategy.gathered() as gathered:
        if gathered is not None:
            assert all(tensor.equal(whole[name]) for name, tensor in gathered.state_dict().items())
    strategy.close()


def train(
    group: Group,
    name: str,
    optimizer: str = "adamw",
    lora: bool = False,
    dropout: float = 0.0,
    size: Sequence[int] = (),
    **layout: int,
) -> Result:
    """Losses, norms of gradients and an evaluation; and the weights, in process 0."""
    model = with_dropout(MODELS[name], dropout)
    drawn = _with_adapters(build(model)) if lora else build(model)
    _check_first_weights(group, model, **layout)
    options = {"grad_clip": 0.5, "label_smoothing": 0.1, "grad_accumulation": 2, "optimizer": optimizer}
    engine = "fsdp" if group.world_size > 1 else None
    strategy = make_strategy(engine, drawn, plan(**options), group, **layout)
    figures = [
        number for step in range(STEPS) for number in strategy.step(step, batch(model, step, *size), 1e-3).tolist()
    ]
    figures.append(strategy.evaluate(batch(model, 100, *size)).item())
    with strategy.gathered() as whole:
        weights = {} if whole is None else {name: tensor.clone() for name, tensor in whole.state_dict().items()}
    strategy.close()
    return figures, weights


def main() -> None:
    torch.set_num_threads(1)
    folder, jobs = Path(sys.argv[1]), json.loads(sys.argv[2])
    group = Group("cpu")
    for number, job in enumerate(jobs):
        figures, weights = train(group, **job)
        if group.is_main:
            save_file(weights, folder / f"{number}.safetensors")
            (folder / f"{number}.json").write_text(json.dumps(figures), encoding="utf-8")
    group.close()


def train_in_four(folder: Path, jobs: list[dict[str, Any]]) -> list[Result]:
    """The results of jobs, arguments of `train`, in four processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    here = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "4"}
    code = "from tests.training.parallel_worker import main; main()"
    with forks("tests.training.parallel_worker", "anyformer.training.strategies.fsdp") as programs:
        processes = [
            programs.start(code, str(folder), json.dumps(jobs), environment={**here, "RANK": rank, "LOCAL_RANK": rank})
            for rank in "0123"
        ]
        with ThreadPoolExecutor(4) as readers:
            said = [err for _, err in readers.map(lambda process: process.communicate(timeout=1500), processes)]
    assert [process.returncode for process in processes] == [0] * 4, "\n".join(said)
    return [
        (json.loads((folder / f"{number}.json").read_text()), load_file(folder / f"{number}.safetensors"))
        for number in range(len(jobs))
    ]


def differences(found: Result, wanted: Result) -> dict[str, float]:
    """Relative differences by name; biases of keys aside, whose gradient is nothing but rounding."""
    (figures, weights), (own, whole) = found, wanted
    by_name = {f"figure {i}": abs(a - b) / abs(b) for i, (a, b) in enumerate(zip(figures, own, strict=True))}
    assert weights.keys() == whole.keys()
    for name, weight in weights.items():
        if "attention.key.bias" not in name:
            by_name[name] = float((weight - whole[name]).norm() / whole[name].norm().clamp(min=1e-9))
    return by_name
