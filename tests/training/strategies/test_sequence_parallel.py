"""The residual stream is spread by tokens, and so is what the backward pass needs of it."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import cast

import pytest
import torch
import torch.distributed as dist
from tests.generation.models import VOCAB, build, config
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.utils.checkpoint import checkpoint

from anyformer.blocks.block import TransformerBlock
from anyformer.model import Transformer
from anyformer.plan.internals import FakeStore
from anyformer.training.strategies.parallel_layers import own_rows
from anyformer.training.strategies.tensor_parallel import make_tensor_parallel

PROCESSES, TEXTS, LENGTH = 4, 3, 7


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
