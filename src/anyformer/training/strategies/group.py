"""The processes that train together, and what they have to tell each other."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor
from typing_extensions import override

from anyformer.errors import UserError
from anyformer.training.strategies.launch import check_engine, started_by_launcher

T = TypeVar("T")

_PATIENCE = timedelta(days=1)
"""The first process may tokenize for hours while the others wait. Whoever started them notices when one dies."""


class Group:
    """One process, which has nobody to talk to. Every method must be called by all processes in the same order.

    Attributes:
        rank: the number of this process; number 0 alone writes and speaks.
        world_size: how many there are.
        local_rank: its number on this machine.
        backend: what carries the messages.
    """

    rank = 0
    world_size = 1
    local_rank = 0
    backend = ""

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes and speaks."""
        return self.rank == 0

    def broadcast(self, value: T) -> T:
        """The value that process 0 has."""
        return value

    def any(self, flag: bool) -> bool:
        """Whether any process says so. It waits for all of them."""
        return flag

    def sum(self, value: Tensor) -> Tensor:
        """The sum over all processes."""
        return value

    def main_first(self, work: Callable[[], T]) -> T:
        """What the work returns. Process 0 does it first, so that the others find its files."""
        return work()

    def close(self) -> None:
        """Leave."""


class ProcessGroup(Group):
    """Several processes, as torchrun, deepspeed or `--processes` started them.

    Args:
        device: its type decides what carries the messages: nccl for cuda, gloo for cpu.
    """

    def __init__(self, device: str) -> None:
        self.rank = int(os.environ["RANK"])
        self.world_size = int(os.environ["WORLD_SIZE"])
        self.local_rank = int(os.environ.get("LOCAL_RANK", "0"))
        if device not in ("cpu", "cuda", "xpu"):
            raise UserError(f"Several processes can't train together on {device}: use --device cpu, or one process.")
        if device == "cuda":
            if self.local_rank >= torch.cuda.device_count():
                raise UserError(
                    f"This is process {self.local_rank + 1} on a machine with {torch.cuda.device_count()} GPUs: "
                    "start one process for each, or use --device cpu."
                )
            torch.cuda.set_device(self.local_rank)
        self.backend = dist.get_default_backend_for_device(device)
        if not dist.is_initialized():
            dist.init_process_group(self.backend, timeout=_PATIENCE)

    @override
    def broadcast(self, value: T) -> T:
        box: list[Any] = [value]
        dist.broadcast_object_list(box, src=0)
        return cast("T", box[0])

    @override
    def any(self, flag: bool) -> bool:
        return bool(self.sum(torch.tensor(float(flag), device=self._device)).item())

    @override
    def sum(self, value: Tensor) -> Tensor:
        total = value.clone()
        dist.all_reduce(total)
        return total

    @override
    def main_first(self, work: Callable[[], T]) -> T:
        made = work() if self.is_main else None
        self.any(False)
        return work() if made is None else made

    @override
    def close(self) -> None:
        # After an error the others can't be waited for.
        if sys.exc_info()[0] is None:
            self.any(False)
        dist.destroy_process_group()
        # Threads of gloo's let go of the last tensors after the others have gone on. One that does so while Python ends
        # takes the process down with it: "terminate called without an active exception".
        time.sleep(0.2)

    @property
    def _device(self) -> torch.device:
        return torch.device("cuda", self.local_rank) if self.backend == "nccl" else torch.device("cpu")


def join(engine: str | None, device: str | None) -> Group:
    """The group that this process belongs to.

    Raises:
        UserError: several processes were started and no engine was named, an engine and only one process, or a device
            that there is not one of for each.
    """
    processes = int(os.environ["WORLD_SIZE"]) if started_by_launcher() else 1
    check_engine(engine, processes)
    if processes == 1:
        return Group()
    where = device or ("cuda" if torch.cuda.is_available() else "cpu")
    return ProcessGroup(torch.device(where).type)
