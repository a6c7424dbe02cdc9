"""A copy of the model on each process, whose gradients are added up: PyTorch's DistributedDataParallel."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from typing_extensions import override

from anyformer.training.strategies.base import LossModule, Strategy


class DDP(Strategy):
    """Trains on several processes, each of which has the whole model (Li et al. 2020, PyTorch Distributed)."""

    _copies: DistributedDataParallel

    @override
    def save(self, folder: Path) -> None:
        # All processes have the same.
        if self.group.is_main:
            super().save(folder)

    @override
    def close(self) -> None:
        # What adds up the gradients must be gone before the group is.
        del self._copies, self.wrapped

    @override
    def __str__(self) -> str:
        return f"ddp, {self.group.world_size} processes ({self.group.backend})"

    @override
    def _wrap(self) -> nn.Module:
        device = self.plan.precision.device
        self._copies = DistributedDataParallel(
            LossModule(self.model),
            device_ids=None if device.type == "cpu" else [device],
            # A pooler is no part of a language model's loss. Looking for such parts takes time, so only where one is.
            find_unused_parameters=self.model.pooler is not None,
            gradient_as_bucket_view=True,
        )
        return self._copies

    @override
    def _forward(self, **inputs: Any) -> Tensor:
        return self.wrapped(**inputs)

    @override
    def _last(self, last: bool) -> AbstractContextManager[object]:
        return nullcontext() if last else self._copies.no_sync()
