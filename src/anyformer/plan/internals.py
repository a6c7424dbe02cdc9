"""What a plan needs of torch that torch does not document, in one place, so that a version without it is told at once.

Fake tensors have no documented substitute: tensors of the device "meta" take other paths through a model than a CPU's.
"""

import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import cache
from typing import Any

import torch

from anyformer.errors import UserError

try:
    from torch._subclasses.fake_tensor import DynamicOutputShapeException, FakeTensor, FakeTensorMode
    from torch.testing._internal.distributed.fake_pg import FakeStore
    from torch.utils._python_dispatch import (
        TorchDispatchMode,
        _disable_current_modes,  # pyright: ignore[reportPrivateUsage]
    )

    no_modes: Callable[[], AbstractContextManager[Any]] = _disable_current_modes
    _graph_task: Callable[[], int] = torch._C._current_graph_task_id  # pyright: ignore[reportPrivateUsage]
    _kernel: Callable[[str, str], bool] = torch._C._dispatch_has_kernel_for_dispatch_key  # pyright: ignore[reportPrivateUsage]
except (ImportError, AttributeError) as error:
    raise UserError(
        f"anyformer plan needs parts of torch that version {torch.__version__} lacks ({error}): use torch 2.9 to 2.13."
    ) from error

__all__ = [
    "DynamicOutputShapeException",
    "FakeStore",
    "FakeTensor",
    "FakeTensorMode",
    "TorchDispatchMode",
    "called_by_autograd",
    "has_cpu_kernel",
    "no_modes",
]


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
