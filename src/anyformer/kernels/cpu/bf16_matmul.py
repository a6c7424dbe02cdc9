"""Matrix products of bfloat16 on processors that multiply matrices (see bf16_matmul.cpp)."""

import torch
from jaxtyping import Float
from torch import Tensor

from anyformer.kernels.cpu.library import MatmulKernel, supports_bf16
from anyformer.kernels.cpu_features import has_amx_bf16
from anyformer.kernels.operation import constant_result

KERNEL = MatmulKernel("bf16_matmul")
_OPERANDS = (torch.float32, torch.bfloat16)


def supports(x: Tensor, dtype: torch.dtype | None = None) -> bool:
    """Whether `bf16_matmul` is there for the inputs of a linear layer, in a dtype or in that of its products."""
    return supports_bf16(x, dtype) and _has_amx() and KERNEL.supported()


@constant_result
def _has_amx() -> bool:
    return has_amx_bf16()


def bf16_matmul(
    left: Float[Tensor, "rows depth"],
    right: Float[Tensor, "outputs depth"],
    bias: Float[Tensor, " outputs"] | None = None,
    *,
    out: Float[Tensor, "rows outputs"],
    sums: Float[Tensor, " rows"] | None = None,
    add: bool = False,
) -> Float[Tensor, "rows outputs"]:
    """``left @ right.T + bias``, both operands rounded to bfloat16, summed in float32.

    Args:
        left, right: In float32 or bfloat16; as it is or transposed, it is read where it lies.
        out: Where to write it, contiguous, in float32 or bfloat16.
        sums: Where to write the sum of each row of left in float32, such as the gradient of a bias; None: it isn't
            wanted.
        add: Add the product to what is there.
    """
    left, right = (side if side.dtype in _OPERANDS else side.float() for side in (left, right))
    return KERNEL.multiply(left, right, bias, out, sums, add=add)
