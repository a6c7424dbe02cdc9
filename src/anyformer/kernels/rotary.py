"""Rotary positions; compiled code where angles are in float32 and attention in bfloat16 (see cpu/rotary.cpp)."""

import torch
from jaxtyping import Float
from torch import Tensor

from anyformer.kernels.autocast import matmul_dtype
from anyformer.kernels.cpu import structs
from anyformer.kernels.cpu.library import Kernel
from anyformer.kernels.operation import operation

KERNEL = Kernel("rotary", structs.RotaryArgs, "rotary positions in bfloat16", "avx512bf16")


def rotate(
    x: Float[Tensor, "batch heads time head_dim"],
    cos: Float[Tensor, "#batch 1 time head_dim"],
    sin: Float[Tensor, "#batch 1 time head_dim"],
) -> Float[Tensor, "batch heads time head_dim"]:
    """``x cos + (-second, first) sin``, where ``first, second`` are the halves of x.

    Compiled code returns autocast's dtype, which attention computes in.
    """
    if KERNEL.supports_bf16(x) and _supports(x, cos, sin):
        return forward(x, cos.contiguous(), sin.contiguous(), matmul_dtype(x), False)
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


def _supports(x: Tensor, cos: Tensor, sin: Tensor) -> bool:
    tables = cos.shape == sin.shape == (len(cos), 1, *x.shape[2:]) and cos.dtype == sin.dtype == torch.float32
    return tables and len(cos) in (1, len(x)) and x.dtype in structs.DTYPES


@operation("rotate")
def forward(x: Tensor, cos: Tensor, sin: Tensor, dtype: torch.dtype, transposed: bool) -> Tensor:
    """The rotation or its transpose, in a dtype."""
    x = x if x.stride(-1) == 1 else x.contiguous()
    out = torch.empty_like(x, dtype=dtype)
    batch, heads, time, head_dim = x.shape
    KERNEL.run(
        x=x,
        out=out,
        x_dtype=structs.DTYPES[x.dtype],
        out_dtype=structs.DTYPES[dtype],
        cos=cos,
        sin=sin,
        batch_stride=cos.stride(0) if len(cos) > 1 else 0,
        batch=batch,
        heads=heads,
        time=time,
        head_dim=head_dim,
        transposed=transposed,
    )
    return out


def _backward(grad: Tensor, cos: Tensor, sin: Tensor, dtype: torch.dtype) -> Tensor:
    return forward.function(grad, cos, sin, dtype, True)


forward.register_autograd(_backward, saved=lambda inputs, _, __: (*inputs[1:3], inputs[0].dtype))
