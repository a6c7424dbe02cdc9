"""Matrices spread over processes compute what one process does, of every model, or are declined in a sentence."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
import torch.distributed as dist
from tests.generation.models import VOCAB, build, config
from tests.training.parallel_worker import MODELS, differences, train, train_in_four
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.utils.checkpoint import checkpoint

from anyformer.blocks.block import TransformerBlock
from anyformer.config import AttentionConfig, ExpertsConfig, FeedForwardConfig, ModelConfig
from anyformer.errors import UserError
from anyformer.model import Transformer
from anyformer.plan.internals import FakeStore
from anyformer.quantization import quantize
from anyformer.training.strategies.group import Group
from anyformer.training.strategies.launch import check_engine
from anyformer.training.strategies.parallel_layers import own_rows
from anyformer.training.strategies.tensor_parallel import check_model, make_tensor_parallel

DECLINED = {"windowed"}
"""It has one head of keys."""
PROCESSES, TEXTS, LENGTH = 4, 3, 7


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


@pytest.fixture
def mesh() -> Iterator[DeviceMesh]:
    """Four processes of which this is the last, and whose messages are not sent."""
    dist.init_process_group("fake", store=FakeStore(), rank=PROCESSES - 1, world_size=PROCESSES)
    try:
        yield init_device_mesh("cpu", (PROCESSES,))
    finally:
        dist.destroy_process_group()


def _kept(model: Transformer) -> tuple[list[torch.Size], int]:
    """The shapes that the blocks read, and the vectors kept of three texts where blocks are computed once more."""
    shapes, kept = list[torch.Size](), dict[int, int]()
    assert model.decoder is not None
    for block in cast("list[TransformerBlock]", [*model.decoder.blocks]):
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)
        block.register_forward_pre_hook(lambda _, inputs: shapes.append(inputs[0].shape))

    def pack(tensor: Tensor) -> Tensor:
        if tensor.dim() == 3 and tensor.shape[-1] == model.config.d_model:
            kept[tensor.data_ptr()] = tensor.shape[:-1].numel()
        return tensor

    tokens = torch.randint(5, VOCAB, (TEXTS, LENGTH))
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = model(tokens, targets=tokens, return_logits=False).loss
    loss.backward()
    return shapes, sum(kept.values())


def test_between_blocks_a_process_keeps_its_own_tokens(mesh: DeviceMesh) -> None:
    model, layers = build(config()).train(), 2
    assert _kept(model) == ([torch.Size([TEXTS, LENGTH, 16])] * layers, TEXTS * LENGTH * (layers + 1))
    make_tensor_parallel(model := build(config()).train(), mesh)
    own = own_rows(TEXTS * LENGTH, mesh)
    count = own.stop - own.start
    assert 0 < count < TEXTS * LENGTH / PROCESSES
    # The input of each block, and that of the last norm.
    assert _kept(model) == ([torch.Size([1, count, 16])] * layers, count * (layers + 1))
