"""A copy of the model on each process, whose gradients are added up: PyTorch's DistributedDataParallel."""

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from torch.nn.parallel import DistributedDataParallel
from typing_extensions import override

from anyformer.blocks.head import LanguageModelHead
from anyformer.training.strategies.base import Strategy


class DDP(Strategy):
    """Trains on several processes, each of which has the whole model (Li et al. 2020, PyTorch Distributed)."""

    engine = "ddp"

    @override
    def save(self, folder: Path) -> None:
        # All processes have the same.
        if self.group.is_main:
            super().save(folder)

    @override
    def _wrap(self) -> DistributedDataParallel:
        device = self.plan.precision.device
        return DistributedDataParallel(
            self.plan.loss(self.model),
            device_ids=None if device.type == "cpu" else [device],
            # A pooler is no part of a language model's loss. Looking for such parts takes time, so only where one is.
            find_unused_parameters=self.model.pooler is not None and isinstance(self.model.head, LanguageModelHead),
            gradient_as_bucket_view=True,
        )

    @override
    def _last(self, last: bool) -> AbstractContextManager[object]:
        return nullcontext() if last else self.wrapped.no_sync()
