"""The gradient of a linear layer's weight, on processors that multiply matrices (see weight_grad.cpp)."""

import torch
from jaxtyping import BFloat16, Float
from torch import Tensor

from anyformer.kernels.cpu import structs
from anyformer.kernels.cpu.library import Kernel, supports_bf16
from anyformer.kernels.cpu_features import has_amx_bf16
from anyformer.kernels.operation import constant_result

KERNEL = Kernel("weight_grad", structs.WeightGradArgs)


def supports(x: Tensor, dtype: torch.dtype | None = None) -> bool:
    """Whether `weight_grad` is there for the inputs of a linear layer, in a dtype or in that of its products."""
    return supports_bf16(x, dtype) and _has_amx() and KERNEL.supported()


@constant_result
def _has_amx() -> bool:
    return has_amx_bf16()


def weight_grad(
    grad: BFloat16[Tensor, "rows outputs"],
    input: BFloat16[Tensor, "rows inputs"],
    out: Float[Tensor, "outputs inputs"] | None = None,
    *,
    bias_grad: Float[Tensor, " outputs"] | None = None,
    add: bool = False,
) -> Float[Tensor, "outputs inputs"]:
    """``grad.T @ input``, summed in float32.

    Args:
        out: Where to write it, contiguous; None: into a new tensor.
        bias_grad: Where to write the sum of the rows of grad; None: it isn't computed.
        add: Add the product to what `out` holds.
    """
    left, right = (part if part.stride(1) == 1 else part.contiguous() for part in (grad, input))
    if out is None:
        out = grad.new_empty(grad.shape[1], input.shape[1], dtype=torch.float32)
    if not len(grad):
        if bias_grad is not None:
            bias_grad.zero_()
        return out if add else out.zero_()
    KERNEL.run(
        grad_out=left,
        input=right,
        grad_out_stride=left.stride(0),
        input_stride=right.stride(0),
        grad_weight=out,
        rows=len(grad),
        out_features=grad.shape[1],
        in_features=input.shape[1],
        grad_bias=bias_grad,
        accumulate=add,
    )
    return out
