"""Sums of outer products in compiled code, on processors that multiply matrices (see outer.cpp)."""

from __future__ import annotations

import torch
from jaxtyping import BFloat16, Float
from torch import Tensor

from anyformer.kernels.cpu import structs
from anyformer.kernels.cpu.library import Kernel, supports_bf16
from anyformer.kernels.cpu_features import has_amx_bf16

KERNEL = Kernel("weight_grad")


def can_sum(x: Tensor, dtype: torch.dtype | None = None) -> bool:
    """Whether `outer_products` is there for gradients of what this met, in a format or in that of its products."""
    return has_amx_bf16() and supports_bf16(x, dtype) and KERNEL.supported()


def outer_products(
    left: BFloat16[Tensor, "rows outputs"],
    right: BFloat16[Tensor, "rows inputs"],
    out: Float[Tensor, "outputs inputs"] | None = None,
    *,
    sums: Float[Tensor, " outputs"] | None = None,
    add: bool = False,
) -> Float[Tensor, "outputs inputs"]:
    """``left.T @ right``, summed in float32.

    Args:
        left: Such as the gradient of what came out of a matrix.
        right: Such as what went in.
        out: Where to write it, in one piece; None: into a new tensor.
        sums: Where to write the sum of left's rows, such as the gradient of a bias; None: it isn't wanted.
        add: Add the products to what is there.
    """
    parts = [part if part.stride(1) == 1 else part.contiguous() for part in (left, right)]
    if out is None:
        out = torch.empty(left.shape[1], right.shape[1])
    if not len(left):
        if sums is not None:
            sums.zero_()
        return out if add else out.zero_()
    described = structs.WeightGradArgs(
        grad_out=parts[0].data_ptr(),
        input=parts[1].data_ptr(),
        grad_out_stride=parts[0].stride(0),
        input_stride=parts[1].stride(0),
        grad_weight=out.data_ptr(),
        rows=len(left),
        out_features=left.shape[1],
        in_features=right.shape[1],
        grad_bias=None if sums is None else sums.data_ptr(),
        accumulate=int(add),
        num_threads=torch.get_num_threads(),
    )
    KERNEL.run(described)
    return out
