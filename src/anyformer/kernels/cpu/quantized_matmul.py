"""Products with quantized weights (see quantized_matmul.cpp)."""

import ctypes
from ctypes import c_int64, c_void_p
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from anyformer.kernels.cpu import structs
from anyformer.kernels.cpu.build import Library
from anyformer.kernels.cpu.library import was_intercepted
from anyformer.kernels.cpu_features import enabled
from anyformer.kernels.packed_weight import PackedWeight

LIBRARY = Library(
    "quantized_matmul",
    amx_min_rows=(c_int64,),
    int8_min_rows=(c_int64,),
    workspace_size=(c_int64, c_void_p, c_int64, c_int64),
    quantized_matmul=(None, c_void_p, c_void_p, c_int64, c_void_p, c_void_p, c_int64),
)

_DTYPES = {(8, True): structs.INT8, (4, False): structs.INT4, (4, True): structs.INT4_CENTERED}
"""Dtypes of integers, by bits and whether there are no minima."""


def supports(x: Tensor) -> bool:
    """Whether `quantized_matmul` may be used here; it waits for the compiler, for torch is far slower."""
    if torch.compiler.is_compiling() or (torch.is_grad_enabled() and x.requires_grad):
        return False
    return x.device.type == "cpu" and enabled() and LIBRARY.get(wait=True) is not None


def quantized_matmul(
    x: Float[Tensor, "*batch inputs"], weight: PackedWeight, bias: Float[Tensor, " outputs"] | None
) -> Float[Tensor, "*batch outputs"]:
    """``x @ weight.T + bias``, where x is rounded to 8 bits with a scale for every 32 neighbors."""
    library: Any = LIBRARY.get(wait=True)
    inputs = x.reshape(-1, x.shape[-1]).float().contiguous()
    out = torch.empty(*x.shape[:-1], weight.rows, dtype=torch.float32)
    bias = None if bias is None else bias.float().contiguous()
    matrix = described(weight, bias)
    rows, threads, address = len(inputs), torch.get_num_threads(), ctypes.addressof(matrix)
    workspace = torch.empty(library.workspace_size(address, rows, threads), dtype=torch.uint8)
    if not was_intercepted("quantized_matmul", {"rows": rows, "out_features": weight.rows, "in_features": x.shape[-1]}):
        library.quantized_matmul(address, inputs.data_ptr(), rows, out.data_ptr(), workspace.data_ptr(), threads)
    return out.to(x.dtype)


def described(weight: PackedWeight, bias: Float[Tensor, " outputs"] | None = None) -> ctypes.Structure:
    """A matrix for compiled code; whoever uses it keeps the tensors."""
    sizes = {
        "out_features": weight.rows,
        "in_features": weight.columns,
        "dtype": _DTYPES[weight.bits, weight.minima is None],
    }
    tensors = {"weights": weight.integers, "scales": weight.scales, "minima": weight.minima, "bias": bias}
    return structs.make(structs.Matrix, **tensors, **sizes)
