"""Matrices spread over processes compute what one process does, of every model, or are declined in a sentence."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tests.generation.models import build, config
from tests.training.parallel_worker import MODELS, differences, train, train_in_four

from anyformer.config import AttentionConfig, ExpertsConfig, FeedForwardConfig, ModelConfig
from anyformer.errors import UserError
from anyformer.quantization import quantize
from anyformer.training.strategies.group import Group
from anyformer.training.strategies.launch import check_engine
from anyformer.training.strategies.tensor_parallel import check_model, make_tensor_parallel

DECLINED = {"windowed"}
"""It has one head of keys."""


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_two_by_two_processes_equal_one(tmp_path: Path) -> None:
    jobs = [{"name": name, "tensor_parallel": 2} for name in MODELS if name not in DECLINED]
    by_muon = ("branch", "latent", "many experts", "relative both")
    jobs += [{"name": name, "tensor_parallel": 2, "optimizer": "muon"} for name in by_muon]
    adapted = ("grouped", "many experts", "latent", "relative both", "masked", "sinks, bounded experts")
    jobs += [{"name": name, "tensor_parallel": 2, "lora": True} for name in adapted]
    jobs += [{"name": name, "tensor_parallel": 4} for name in ("no bias", "latent", "relative")]
    jobs += [{"name": name, "tensor_parallel": 4, "dropout": 0.2} for name in ("no bias", "post", "relative")]
    # Fewer tokens than processes.
    jobs += [{"name": name, "tensor_parallel": 4, "size": (1, 3)} for name in ("no bias", "masked", "relative")]
    for job, found in zip(jobs, train_in_four(tmp_path, jobs), strict=True):
        wanted = train(Group(), **{name: value for name, value in job.items() if name != "tensor_parallel"})
        assert {name: size for name, size in differences(found, wanted).items() if size > 1e-5} == {}, job


@pytest.mark.parametrize(
    ("model", "says"),
    [
        (config(attention=AttentionConfig(heads=4, kv_heads=1)), r"2 can't spread attention\.kv_heads 1 evenly"),
        (config(d_model=15, attention=AttentionConfig(heads=3)), r"can't spread attention\.heads 3 evenly"),
        (config(feed_forward=FeedForwardConfig(width=25)), r"can't spread feed_forward\.width 25 evenly"),
        (
            config(feed_forward=FeedForwardConfig(width=24, experts=ExpertsConfig(count=5, used=2))),
            r"can't spread feed_forward\.experts\.count 5 evenly",
        ),
        (
            replace(config(encoder_layers=1), decoder_attention=AttentionConfig(heads=1)),
            r"can't spread decoder_attention\.heads 1 evenly",
        ),
    ],
)
def test_a_model_that_can_not_be_spread_is_declined(model: ModelConfig, says: str) -> None:
    with pytest.raises(UserError, match=says):
        check_model(model, 2)


def test_quantized_weights_are_declined() -> None:
    mesh: Any = SimpleNamespace(size=lambda: 2)
    model = quantize(build(config(d_model=32, feed_forward=FeedForwardConfig(width=32))), "int8")
    with pytest.raises(UserError, match="can't spread quantized weights"):
        make_tensor_parallel(model, mesh)


def test_odd_vocabularies_are_spread() -> None:
    check_model(config(), 2)
    with pytest.raises(UserError, match="can't spread vocab_size 3 evenly"):
        check_model(config(vocab_size=3), 4)


def test_a_layout_that_the_processes_do_not_fit_is_declined() -> None:
    check_engine("fsdp", 4, 2, 2)
    with pytest.raises(UserError, match=r"--tensor-parallel 2 times --context-parallel 2 does not divide .* 6"):
        check_engine("fsdp", 6, 2, 2)
    with pytest.raises(UserError, match=r"--engine fsdp is for several processes"):
        check_engine("fsdp", 1, 2)
