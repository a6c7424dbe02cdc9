"""Libraries with one operation each, whose arguments are a structure."""

from __future__ import annotations

import ctypes
from ctypes import Structure, c_int64, c_void_p
from typing import Any

import torch
from torch import Tensor

from anyformer.kernels.autocast import matmul_dtype
from anyformer.kernels.cpu.build import Library
from anyformer.kernels.cpu_features import enabled, has_avx512_bf16


class Kernel(Library):
    """A library that exports `supported`, `workspace_size` and `run`.

    Args:
        name: The name of its .cpp file.
    """

    def __init__(self, name: str) -> None:
        super().__init__(name, supported=(c_int64,), workspace_size=(c_int64, c_void_p), run=(None, c_void_p, c_void_p))

    def supported(self) -> bool:
        """Whether it is compiled, and this processor has its instructions.

        It waits for the compiler, so that results, which differ from torch's by rounding, do not change during a run.
        """
        library: Any = self.get(wait=True)
        return library is not None and library.supported() > 0

    def run(self, arguments: Structure) -> None:
        """Run it, in a workspace of its own."""
        library: Any = self.get(wait=True)
        address = ctypes.addressof(arguments)
        workspace = torch.empty(library.workspace_size(address), dtype=torch.uint8)
        library.run(address, workspace.data_ptr())


def supports_bf16(x: Tensor, dtype: torch.dtype | None = None) -> bool:
    """Whether the bfloat16 kernels for training may be used, which need AVX-512's dot products.

    Args:
        x: The input of the operation.
        dtype: The dtype to compute in; None: autocast's, or that of x.
    """
    return x.device.type == "cpu" and (dtype or matmul_dtype(x)) == torch.bfloat16 and _has_avx512_bf16()


@torch.compiler.assume_constant_result
def _has_avx512_bf16() -> bool:
    return enabled() and has_avx512_bf16()
