"""The number format of a run's products. Weights and the optimiser's state are always kept in float32."""

from __future__ import annotations

import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from anyformer.errors import UserError

_WORTH_IT = 1.5
"""Products have to gain this much, for the conversions cost something."""

_REPEATS = 16


@dataclass(frozen=True, slots=True)
class Precision:
    """Where a run computes and in which format.

    Attributes:
        reason: why this format, for people.
    """

    device: torch.device
    dtype: torch.dtype
    reason: str

    def autocast(self) -> AbstractContextManager[object]:
        """Computes in the format what gains by it, as torch's autocast does."""
        if self.dtype == torch.float32:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=self.dtype)

    @property
    def name(self) -> str:
        """The format's name, such as float32."""
        return str(self.dtype).removeprefix("torch.")

    def __str__(self) -> str:
        return f"{self.name} on {self.device} ({self.reason})"


def choose_precision(device: str | None, dtype: str | None) -> Precision:
    """The device and format that were asked for, or those that are fastest here.

    Whether a CPU gains by bfloat16 is measured, because its feature flags don't tell: AMX gains five times, some CPUs
    with AVX512-BF16 lose half.

    Raises:
        UserError: there is no such device.
    """
    where = _device(device)
    if dtype is not None:
        return Precision(where, {"float32": torch.float32, "bfloat16": torch.bfloat16}[dtype], "as asked")
    if where.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        chosen = torch.bfloat16 if native else torch.float32
        return Precision(where, chosen, "the GPU has bfloat16" if native else "the GPU has no bfloat16")
    if where.type != "cpu":
        return Precision(where, torch.float32, f"the safe choice on {where.type}")
    gain = _gain()
    chosen = torch.bfloat16 if gain >= _WORTH_IT else torch.float32
    return Precision(where, chosen, f"bfloat16 products run {gain:.1f} times as fast on this CPU")


def _device(name: str | None) -> torch.device:
    if name is None:
        return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise UserError(f"--device {name} can't be used: {reason}.") from error
    return device


def _gain() -> float:
    """How many times as fast products of the size that small models have are in bfloat16.

    The formats take turns and the best time of each counts, so that other work on the machine does not decide.
    """
    best: dict[torch.dtype, float] = {}
    operands = {dtype: torch.ones(1024, 384, dtype=dtype) for dtype in (torch.float32, torch.bfloat16)}
    for _ in range(_REPEATS):
        for dtype, x in operands.items():
            start = time.perf_counter()
            F.linear(x, x)
            best[dtype] = min(best.get(dtype, float("inf")), time.perf_counter() - start)
    return best[torch.float32] / best[torch.bfloat16]
