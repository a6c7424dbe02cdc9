"""Matrix products ``left @ right.T``: for training, of operands as they lie in memory; and with quantized weights."""

import ctypes
import math
from ctypes import c_int64, c_void_p
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from anyformer.kernels.autocast import matmul_dtype
from anyformer.kernels.cpu import structs
from anyformer.kernels.cpu.library import Kernel, Library, was_intercepted
from anyformer.kernels.operation import constant_result
from anyformer.kernels.packed_weight import PackedWeight
from anyformer.native.levels import has_amx_bf16, mkl_halves_vectors

BF16 = Kernel("bf16_matmul", structs.MatmulArgs, "linear in bfloat16", "avx512bf16")
FP32 = Kernel("fp32_matmul", structs.MatmulArgs, "linear in float32", "avx512bf16")
INT8 = Kernel("int8_matmul", structs.MatmulArgs, "linear in int8", "avx512vnni")
QUANTIZED = Library(
    "quantized_matmul",
    "linear with quantized weights",
    amx_min_rows=(c_int64,),
    code_tiles_min_rows=(c_int64,),
    int8_min_rows=(c_int64,),
    workspace_size=(c_int64, c_void_p, c_int64, c_int64),
    quantized_matmul=(None, c_void_p, c_void_p, c_int64, c_void_p, c_void_p, c_int64),
)

_DTYPES = {(8, True): structs.INT8, (4, False): structs.INT4, (4, True): structs.INT4_CENTERED}
"""Dtypes of integers, by bits and whether there are no minima."""

_MIN_SIZE = 1 << 24
"""Multiplications from which a product of int8 gains a quarter and more; much smaller ones are slower than bfloat16."""
_MIN_BF16_SIZE = 1 << 30
"""Multiplications from which our gradient in bfloat16 without AMX is as fast as torch's, calls of Python included."""
_MIN_FP32_SIZE = 1 << 24
"""Multiplications from which a product of float32 gains."""
LARGEST = 127
_MAX_DEPTH = (1 << 31) // LARGEST**2
"""Terms of a sum of products of int8 that is sure to fit 32 bits."""


def supports_bf16(x: Tensor, dtype: torch.dtype | None = None) -> bool:
    """Whether `bf16_matmul` is there for the inputs of a linear layer, in a dtype or in that of its products."""
    return BF16.supports_bf16(x, dtype)


def bf16_is_faster(x: Tensor, outputs: int, dtype: torch.dtype | None = None) -> bool:
    """Whether `bf16_matmul` makes the gradient of a weight as fast as torch: without AMX that of a large one."""
    return supports_bf16(x, dtype) and (has_amx() or x.numel() * outputs >= _MIN_BF16_SIZE)


@constant_result
def has_amx() -> bool:
    """Whether `bf16_matmul` computes in AMX, much faster than torch, and not in AVX-512, about as fast."""
    return has_amx_bf16()


def fp32_is_faster(x: Tensor, weight: Tensor, dtype: torch.dtype | None = None) -> bool:
    """Whether `fp32_matmul` is there for a linear layer, whose products have this dtype, and faster than torch's."""
    is_fp32 = x.is_cpu and (dtype or matmul_dtype(x)) == weight.dtype == torch.float32
    return is_fp32 and x.numel() * len(weight) >= _MIN_FP32_SIZE and _mkl_halves_vectors() and FP32.supported()


@constant_result
def _mkl_halves_vectors() -> bool:
    return mkl_halves_vectors()


def supports_int8() -> bool:
    """Whether `int8_matmul` is there: on processors that sum four products of bytes at a time."""
    return INT8.supported()


def int8_is_faster(*sizes: int) -> bool:
    """Whether products of these sizes gain on those in floating point, and their sums are exact."""
    # Transposed matrices of a single row or column are misread by torch's own product.
    return math.prod(sizes) >= _MIN_SIZE and max(sizes) <= _MAX_DEPTH and min(sizes) >= 2


def multiply(
    kernel: Kernel,
    left: Float[Tensor, "rows depth"],
    right: Float[Tensor, "outputs depth"],
    bias: Float[Tensor, " outputs"] | None = None,
    *,
    out: Float[Tensor, "rows outputs"],
    sums: Float[Tensor, " rows"] | None = None,
    add: bool = False,
    stochastic: bool = False,
) -> Float[Tensor, "rows outputs"]:
    """``left @ right.T + bias``, summed in float32: by `FP32`, by `BF16` of operands rounded to it, or by `INT8`.

    `FP32` takes float32 alone, and no `sums`. By `INT8`, each row of left and right is scaled to -127 ... 127 and
    rounded.

    Args:
        out: Where to write it, contiguous, in float32 or bfloat16.
        sums: Where to write the sum of each row of left in float32, such as the gradient of a bias; None: nowhere.
        add: Add the product to what is there.
        stochastic: `INT8` rounds numbers of left up or down by chance, the nearer the likelier, so that those of less
            than half of a step count in the mean (Gupta et al. 2015, section 3). Chance depends on the numbers alone.
    """
    left, right = _readable(left), _readable(right)
    kernel.run(
        left=left,
        right=right,
        rows=len(left),
        columns=len(right),
        depth=left.shape[1],
        bias=None if bias is None else bias.float().contiguous(),
        row_sums=sums,
        out=out,
        dtype=structs.DTYPES[out.dtype],
        accumulate=add,
        stochastic_rounding=stochastic,
    )
    return out


def _readable(side: Tensor) -> Tensor:
    if side.dtype not in structs.DTYPES:
        side = side.float()
    return side if 1 in side.stride() else side.contiguous()


fp32_matmul, bf16_matmul, int8_matmul = (partial(multiply, kernel) for kernel in (FP32, BF16, INT8))


def supports_quantized(x: Tensor) -> bool:
    """Whether `quantized_matmul` may be used here."""
    if torch.compiler.is_compiling() or (torch.is_grad_enabled() and x.requires_grad):
        return False
    return x.device.type == "cpu" and QUANTIZED.get() is not None


def quantized_matmul(
    x: Float[Tensor, "*batch inputs"], weight: PackedWeight, bias: Float[Tensor, " outputs"] | None
) -> Float[Tensor, "*batch outputs"]:
    """``x @ weight.T + bias``, where x is rounded to 8 bits with a scale for every 32 neighbors."""
    library: Any = QUANTIZED.get()
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
    return structs.Matrix(
        weights=structs.address(weight.integers),
        scales=structs.address(weight.scales),
        minima=structs.address(weight.minima),
        bias=structs.address(bias),
        out_features=weight.rows,
        in_features=weight.columns,
        dtype=_DTYPES[weight.bits, weight.minima is None],
    )
