"""The processes that train together, and their messages to each other."""

from __future__ import annotations

import copy
import logging
import os
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from functools import cache, cached_property, partial
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor

from anyformer.errors import UserError, cut
from anyformer.training.config import ONE_PROCESS
from anyformer.training.precision import hardware
from anyformer.training.strategies.launch import check_engine, started_by_launcher

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

T = TypeVar("T")

XLA_VERSION = "2.9"
"""The version of PyTorch/XLA, its last, and of the torch that it needs."""
_PATIENCE = timedelta(days=1)
"""The first process may tokenize for hours while the others wait. Whoever started them notices when one dies."""


class Group:
    """This process alone, or several that torchrun, deepspeed or `--processes` started.

    Every method must be called by all processes in the same order.

    Args:
        device: type of the devices, which decides what carries the messages; None: this process is alone.

    Attributes:
        rank: the number of this process; number 0 alone writes and prints.
        local_rank: its number on this machine.
        backend: the library of the messages: nccl for cuda, gloo for cpu, tpu_dist for tpu, empty for a process alone.

    Raises:
        UserError: several processes can't train together on such a device, or there isn't one for each.
    """

    rank = 0
    world_size = 1
    local_rank = 0
    backend = ""
    _members: dist.ProcessGroup | None = None

    def __init__(self, device: str | None = None) -> None:
        if device is None:
            return
        self.rank = int(os.environ["RANK"])
        self.world_size = int(os.environ["WORLD_SIZE"])
        self.local_rank = int(os.environ.get("LOCAL_RANK", "0"))
        if device not in ("cpu", "cuda", "xpu", "tpu"):
            raise UserError(f"Several processes can't train together on {device}: use --device cpu, or one process.")
        if device == "cuda":
            if self.local_rank >= torch.cuda.device_count():
                raise UserError(
                    f"This is process {self.local_rank + 1} on a machine with {torch.cuda.device_count()} GPUs: "
                    "start one process for each, or use --device cpu."
                )
            torch.cuda.set_device(self.local_rank)
        if device == "tpu" and find_spec("torch_tpu") is None:
            raise UserError("--device tpu needs torch-tpu, which is not installed: pip install torch-tpu")
        self.backend = dist.get_default_backend_for_device(device)
        if self.backend == "gloo":
            # c10d's flight recorder keeps small objects of each exchange; between tensors they make the heap grow.
            os.environ.setdefault("TORCH_FR_BUFFER_SIZE", "0")
        if not dist.is_initialized():
            # What the hosts tell each other does not wait for TPUs.
            backends = f"cpu:gloo,tpu:{self.backend}" if device == "tpu" else self.backend
            dist.init_process_group(backends, timeout=_PATIENCE)

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes and prints."""
        return self.rank == 0

    def broadcast(self, value: T) -> T:
        """The value that process 0 has."""
        box: list[Any] = [value]
        if self.backend:
            dist.broadcast_object_list(box, src=0)
        return cast("T", box[0])

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in any process. It waits for all of them."""
        if not self.backend:
            return flag
        device = torch.device("cuda", self.local_rank) if self.backend == "nccl" else torch.device("cpu")
        return bool(self.sum(torch.tensor(float(flag), device=device)).item())

    @cached_property
    def background(self) -> Callable[[], object]:
        """Function that waits, in another thread, until all processes have called it."""
        if not self.backend:
            return lambda: None
        group = dist.new_group(backend="gloo", timeout=_PATIENCE)
        return partial(dist.barrier, cast("dist.ProcessGroup", group))

    def sum(self, value: Tensor) -> Tensor:
        """The sum over all processes."""
        if not self.backend:
            return value
        total = value.clone()
        dist.all_reduce(total, group=self._members)
        return total

    def along(self, mesh: DeviceMesh) -> Group:
        """The processes of a mesh of one dimension, by their numbers in it, for `sum`."""
        part = copy.copy(self)
        part.rank, part.world_size, part._members = mesh.get_local_rank(), mesh.size(), mesh.get_group()
        return part

    def main_first(self, work: Callable[[], T]) -> T:
        """Do work in process 0 first, so that the others find its files, and return its result."""
        result = work() if self.is_main else None
        self.any(False)
        return work() if result is None else result

    def close(self) -> None:
        """Leave. After an error the others aren't waited for."""
        if not self.backend:
            return
        if sys.exc_info()[0] is None:
            self.any(False)
        dist.destroy_process_group()
        # Threads of gloo's let go of the last tensors after the others have gone on. One that does so while Python ends
        # takes the process down with it: "terminate called without an active exception".
        time.sleep(0.2)


def join(engine: str | None, device: str | None) -> Group:
    """The group that this process belongs to.

    Raises UserError for several processes without an engine, an engine with one process, or too few devices.
    """
    processes = int(os.environ["WORLD_SIZE"]) if started_by_launcher() else 1
    check_engine(engine, processes)
    if engine in ONE_PROCESS:
        start_xla()  # before the first tensor on a device
    if processes == 1:
        return Group()
    return Group((device or ("cuda" if torch.cuda.is_available() else "cpu")).partition(":")[0])


@cache
def start_xla() -> Any:
    """Start PyTorch/XLA with all devices as one; returns its module.

    Raises:
        UserError: it is not installed, or not of the version that it needs to be, or finds no device.
    """
    for name in ("torch", "torch_xla"):
        try:
            found = version(name)
        except PackageNotFoundError:
            found = "missing"
        if not found.startswith(f"{XLA_VERSION}."):
            raise UserError(
                f"--engine xla needs torch {XLA_VERSION} and torch_xla {XLA_VERSION}, and here {name} is {cut(found)}: "
                f"pip install 'torch=={XLA_VERSION}.*' 'torch_xla[tpu]=={XLA_VERSION}.*', in an environment of its own."
            )
    chosen = "PJRT_DEVICE" in os.environ
    # Its library tells of its own future in a line for each program.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    try:
        library = import_module("torch_xla")
        # It warns of being called at all.
        logging.getLogger("torch_xla.backends").setLevel(logging.ERROR)
        # Before the first tensor of its own, and before the first backward pass of any device.
        import_module("torch_xla.runtime").use_spmd()
        number = torch.zeros(1, device=library.device())
        number.item()
    except (ImportError, RuntimeError) as error:
        raise _no_device(str(error).splitlines()[0].rstrip(".")) from error
    if not chosen and hardware(number.device) == "cpu":
        raise _no_device("there is no TPU")
    return library


def _no_device(reason: str) -> UserError:
    return UserError(f"--engine xla can't be used: {cut(reason)}. To try it on a CPU, set PJRT_DEVICE=CPU.")
