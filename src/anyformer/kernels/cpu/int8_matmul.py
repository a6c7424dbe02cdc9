"""Products of matrices by way of 8-bit integers, in compiled code (see rounded.cpp)."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from anyformer.kernels.cpu import structs
from anyformer.kernels.cpu.library import Kernel
from anyformer.kernels.cpu_features import enabled, has_amx_bf16

_FORMATS = {torch.float32: structs.FLOAT32, torch.bfloat16: structs.BFLOAT16}

_WORTH_IT = {torch.float32: 1 << 25, torch.bfloat16: 1 << 26}
"""Multiplications from which a product gains; smaller ones are faster in the format that they would have otherwise."""

LARGEST = 127
_LONGEST = (1 << 31) // LARGEST**2
"""Terms of a sum that is sure to fit 32 bits."""

KERNEL = Kernel("int8_matmul")


# Its answer never changes, and torch.compile would not find it out by itself.
@torch.compiler.assume_constant_result
def can_round() -> bool:
    """Whether `rounded_product` is there: on processors that sum four products of bytes at a time, but have no AMX.

    With AMX, which multiplies whole matrices of them, torch's products are faster. It waits for the compiler.
    """
    return enabled() and not has_amx_bf16() and KERNEL.supported()


def worth_rounding(dtype: torch.dtype, *sizes: int) -> bool:
    """Whether the products of a matrix in training, of these sizes, gain on those in a format, and are exact sums."""
    # Transposed matrices of a single row or column are misread by torch's own product.
    return math.prod(sizes) >= _WORTH_IT.get(dtype, 0) and max(sizes) <= _LONGEST and min(sizes) >= 2


def rounded_product(
    left: Float[Tensor, "rows depth"],
    right: Float[Tensor, "outputs depth"],
    bias: Float[Tensor, " outputs"] | None = None,
    *,
    out: Float[Tensor, "rows outputs"],
    sums: Float[Tensor, " rows"] | None = None,
    add: bool = False,
    dither: bool = False,
) -> Float[Tensor, "rows outputs"]:
    """``left @ right.T + bias``, each row of left and right being scaled to -127 ... 127 and rounded.

    Args:
        left: In float32 or bfloat16; as it is or transposed, it is read where it lies.
        right: Likewise.
        bias: Added to each row.
        out: Where to write it, in one piece, in float32 or bfloat16.
        sums: Where to write the sum of each row of left, as it is before it is rounded, in float32, such as the
            gradient of a bias; None: it isn't wanted.
        add: Add the product to what is there.
        dither: Round numbers of left up or down by chance, the nearer the likelier, so that those of less than half
            of a step count in the mean (Gupta et al. 2015, section 3). Chance depends on nothing but the numbers.
    """
    left, right = (side if 1 in side.stride() else side.contiguous() for side in (left, right))
    added = None if bias is None else bias.float().contiguous()
    described = structs.Int8MatmulArgs(
        left=_described(left),
        right=_described(right),
        rows=len(left),
        columns=len(right),
        depth=left.shape[1],
        bias=None if added is None else added.data_ptr(),
        row_sums=None if sums is None else sums.data_ptr(),
        out=out.data_ptr(),
        dtype=_FORMATS[out.dtype],
        accumulate=add,
        stochastic_rounding=dither,
        num_threads=torch.get_num_threads(),
    )
    KERNEL.run(described)
    return out


def _described(matrix: Tensor) -> structs.Int8Operand:
    standing = matrix.stride(1) != 1
    return structs.Int8Operand(
        data=matrix.data_ptr(), dtype=_FORMATS[matrix.dtype], stride=matrix.stride(int(standing)), transposed=standing
    )
