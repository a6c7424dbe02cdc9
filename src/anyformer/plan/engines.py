"""The first of several processes: a group without the others, and its strategies on tensors without memory.

They are apart from `step` because FSDP takes most of a second to import.
"""

from collections.abc import Generator
from contextlib import contextmanager
from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from typing_extensions import override

from anyformer.model import Transformer
from anyformer.plan.internals import FakeStore
from anyformer.training.strategies.base import Plan, Strategy
from anyformer.training.strategies.fsdp import FSDP
from anyformer.training.strategies.group import Group

_BUCKET = 25 << 20
"""Bytes of gradients that DistributedDataParallel exchanges at a time (its bucket_cap_mb)."""


@contextmanager
def fake_group(processes: int, device: str) -> Generator[tuple[Group, DeviceMesh]]:
    """The first of so many processes, the others of which aren't there, and the mesh of their devices."""
    group = Group()
    group.world_size, group.backend = processes, "fake"
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=processes)
    try:
        yield group, init_device_mesh(device, (processes,))
    finally:
        dist.destroy_process_group()


def make_strategy(engine: str, model: Transformer, plan: Plan, group: Group, mesh: DeviceMesh) -> Strategy:
    """The strategy of ddp or fsdp."""
    return _Sharded(model, plan, group, mesh) if engine == "fsdp" else _Replicated(model, plan, group)


class _Sharded(FSDP):
    """FSDP, whose mesh was made while tensors had memory."""

    def __init__(self, model: Transformer, plan: Plan, group: Group, mesh: DeviceMesh) -> None:
        self._made = mesh
        super().__init__(model, plan, group)

    @override
    def _flat_mesh(self) -> DeviceMesh:
        return self._made


class _Replicated(Strategy):
    """DistributedDataParallel without reading its tensors' memory: all gradients are views of its buckets."""

    @override
    def _wrap(self) -> nn.Module:
        groups: list[list[nn.Parameter]] = [[]]
        for parameter in reversed([*self.model.parameters()]):
            if parameter.requires_grad:
                if sum(each.nbytes for each in groups[-1]) >= _BUCKET:
                    groups.append([])
                groups[-1].append(parameter)
        for group in groups:
            bucket = torch.empty(sum(parameter.numel() for parameter in group))
            for parameter, part in zip(group, bucket.split([each.numel() for each in group]), strict=True):
                is_last = parameter is group[-1]
                move = partial(_move, part.view_as(parameter), bucket if is_last else None)
                parameter.register_post_accumulate_grad_hook(move)
        return super()._wrap()


def _move(grad: Tensor, full: Tensor | None, parameter: Tensor) -> None:
    """Give a parameter its part of a bucket, which is exchanged when it is full."""
    parameter.grad = grad
    if full is not None:
        dist.all_reduce(full)
