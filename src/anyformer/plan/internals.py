"""Undocumented parts of torch that a plan needs, in one place, so that a version without them is noticed at once.

Storages without memory have no documented substitute: tensors of the device "meta" take other paths through a model
than a CPU's, and torch's fake tensors take 0.3 ms for each operation, five times as long: both are only asked for the
layouts of results.
"""

import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import cache
from itertools import count
from typing import Any

import torch

from anyformer.errors import UserError

try:
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.testing._internal.distributed.fake_pg import FakeStore
    from torch.utils._python_dispatch import (
        TorchDispatchMode,
        _disable_current_modes,  # pyright: ignore[reportPrivateUsage]
    )

    no_modes: Callable[[], AbstractContextManager[Any]] = _disable_current_modes
    _c: Any = torch._C  # pyright: ignore[reportPrivateUsage]
    _storage_at: Callable[[int, torch.device, int], torch.UntypedStorage] = _c._construct_storage_from_data_pointer
    _mode: Callable[[Any], Any] = _c._get_dispatch_mode
    _fake: Any = _c._TorchDispatchModeKey.FAKE
    _graph_task: Callable[[], int] = _c._current_graph_task_id
    _kernel: Callable[[str, str], bool] = _c._dispatch_has_kernel_for_dispatch_key
except (ImportError, AttributeError) as error:
    raise UserError(
        f"anyformer plan needs parts of torch that version {torch.__version__} lacks ({error}): use torch 2.9 to 2.13."
    ) from error

_CPU = torch.device("cpu")
_ADDRESSES = count(1 << 56, 64)
"""Addresses that no processor takes, each for one storage: FSDP tells storages by them."""

__all__ = [
    "FakeStore",
    "FakeTensorMode",
    "TorchDispatchMode",
    "asks_for_shapes",
    "called_by_autograd",
    "has_cpu_kernel",
    "no_modes",
    "storage_without_memory",
]


def storage_without_memory(size: int) -> torch.UntypedStorage:
    """A CPU's storage of so many bytes that lies nowhere."""
    return _storage_at(next(_ADDRESSES), _CPU, size)


def asks_for_shapes() -> bool:
    """Whether a DTensor is asking torch's fake tensors what an operation returns."""
    return _mode(_fake) is not None


@cache
def has_cpu_kernel(operator: str) -> bool:
    """Whether an operator is computed by code for CPUs, and not made of others."""
    return _kernel(operator, "CPU")


def called_by_autograd() -> bool:
    """Whether the function that a dispatch mode is told of was called by autograd's engine, and by no backward."""
    if _graph_task() == -1:
        return False
    frame: Any = sys._getframe(1)  # pyright: ignore[reportPrivateUsage]
    while frame.f_code.co_name != "__torch_dispatch__":
        frame = frame.f_back
    frame = frame.f_back
    while "_dynamo" in frame.f_code.co_filename or frame.f_code.co_filename.endswith("_compile.py"):
        frame = frame.f_back
    return "run_backward" in frame.f_code.co_name
