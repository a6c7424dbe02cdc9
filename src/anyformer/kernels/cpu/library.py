"""Units of compiled code that do one thing, which a structure describes: those of training."""

from __future__ import annotations

import ctypes
from ctypes import Structure, c_int64, c_void_p
from typing import Any

import torch
from torch import Tensor

from anyformer.kernels.cpu.build import Unit, has_pairs, wanted
from anyformer.kernels.products import product_format


class Kernel(Unit):
    """A unit of the functions `works`, `bytes` and `run`."""

    def __init__(self, name: str) -> None:
        """Name the unit. Nothing is compiled yet."""
        super().__init__(name, works=(c_int64,), bytes=(c_int64, c_void_p), run=(None, c_void_p, c_void_p))

    def works(self) -> bool:
        """Whether it is there for this processor. It waits for the compiler, for its results are not quite torch's."""
        compiled: Any = self.get(wait=True)
        return compiled is not None and compiled.works() > 0

    def run(self, described: Structure) -> None:
        """Do what is described, in memory of its own."""
        compiled: Any = self.get(wait=True)
        address = ctypes.addressof(described)
        workspace = torch.empty(compiled.bytes(address), dtype=torch.uint8)
        compiled.run(address, workspace.data_ptr())


def can_pair(x: Tensor, dtype: torch.dtype | None = None) -> bool:
    """Whether compiled code, where there is any, has the better attention, activations, norms and softmax of the loss.

    It has in bfloat16, on processors that multiply pairs of such numbers.

    Args:
        x: What they are applied to.
        dtype: In this format; None: in that of its products.
    """
    if x.device.type != "cpu" or (dtype or product_format(x)) != torch.bfloat16 or torch.compiler.is_compiling():
        return False
    return wanted() and has_pairs()
