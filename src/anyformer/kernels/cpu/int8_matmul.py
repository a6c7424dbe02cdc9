"""Matrix products by way of 8-bit integers (see int8_matmul.cpp)."""

import math

from jaxtyping import Float
from torch import Tensor

from anyformer.kernels.cpu.library import MatmulKernel
from anyformer.kernels.cpu_features import enabled
from anyformer.kernels.operation import constant_result

_MIN_SIZE = 1 << 24
"""Multiplications from which a product gains a quarter and more; much smaller ones are slower than in bfloat16."""

LARGEST = 127
_MAX_DEPTH = (1 << 31) // LARGEST**2
"""Terms of a sum that is sure to fit 32 bits."""

KERNEL = MatmulKernel("int8_matmul")


@constant_result
def supports() -> bool:
    """Whether `int8_matmul` is there: on processors that sum four products of bytes at a time.

    It waits for the compiler.
    """
    return enabled() and KERNEL.supported()


def is_faster(*sizes: int) -> bool:
    """Whether products of these sizes gain on those in floating point, and their sums are exact."""
    # Transposed matrices of a single row or column are misread by torch's own product.
    return math.prod(sizes) >= _MIN_SIZE and max(sizes) <= _MAX_DEPTH and min(sizes) >= 2


def int8_matmul(
    left: Float[Tensor, "rows depth"],
    right: Float[Tensor, "outputs depth"],
    bias: Float[Tensor, " outputs"] | None = None,
    *,
    out: Float[Tensor, "rows outputs"],
    sums: Float[Tensor, " rows"] | None = None,
    add: bool = False,
    stochastic: bool = False,
) -> Float[Tensor, "rows outputs"]:
    """``left @ right.T + bias``, each row of left and right being scaled to -127 ... 127 and rounded.

    Args:
        left, right: In float32 or bfloat16; as it is or transposed, it is read where it lies.
        out: Where to write it, contiguous, in float32 or bfloat16.
        sums: Where to write the sum of each row of left, as it is before it is rounded, in float32, such as the
            gradient of a bias; None: it isn't wanted.
        add: Add the product to what is there.
        stochastic: Round numbers of left up or down by chance, the nearer the likelier, so that those of less than half
            of a step count in the mean (Gupta et al. 2015, section 3). Chance depends on nothing but the numbers.
    """
    return KERNEL.multiply(left, right, bias, out, sums, add=add, stochastic=stochastic)
