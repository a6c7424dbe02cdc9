"""Attention in training, on processors that multiply pairs of bfloat16 numbers (see attention.cpp)."""

from __future__ import annotations

import torch
from jaxtyping import BFloat16, Float
from torch import Tensor

from anyformer.kernels.cpu import structs
from anyformer.kernels.cpu.library import Kernel, supports_bf16

KERNEL = Kernel("attention")

QUERY_BLOCK = 128
"""Queries that compiled code computes together: rows of a bias have room for whole blocks."""


@torch.compiler.assume_constant_result
def _supported() -> bool:
    return KERNEL.supported()


def supports(query: Tensor) -> bool:
    """Whether compiled code attends to this; it waits for the compiler."""
    return supports_bf16(query) and _supported()


def forward(
    query: BFloat16[Tensor, "batch heads queries head_dim"],
    key: BFloat16[Tensor, "batch kv_heads keys head_dim"],
    value: BFloat16[Tensor, "batch kv_heads keys head_dim"],
    bias: Float[Tensor, "#batch #heads keys padded_queries"] | None,
    scale: float,
    is_causal: bool,
) -> tuple[BFloat16[Tensor, "batch heads queries head_dim"], Float[Tensor, "batch heads queries"]]:
    """``softmax(scale q k^T + bias) v`` with sums in float32, and the logsumexp of each query's scores.

    Under a causal mask there are as many queries as keys.
    """
    out, logsumexp = empty_like(query), torch.empty(query.shape[:3])
    _run(logsumexp, scale, is_causal, query=query, key=key, value=value, bias=bias, out=out)
    return out, logsumexp


def backward(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor | None,
    out: Tensor,
    logsumexp: Tensor,
    scale: float,
    is_causal: bool,
    bias_requires_grad: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradients of query, key, value and bias; that of the bias is empty if it isn't wanted."""
    grad_query, grad_key, grad_value = empty_like(query), empty_like(key), empty_like(value)
    grads = {"grad_query": grad_query, "grad_key": grad_key, "grad_value": grad_value}
    grad_bias = torch.zeros_like(bias) if bias is not None and bias_requires_grad else None
    parts = {"query": query, "key": key, "value": value, "bias": bias, "out": out}
    _run(logsumexp, scale, is_causal, **parts, grad_out=grad, grad_bias=grad_bias, **grads)
    return grad_query, grad_key, grad_value, torch.empty(0) if grad_bias is None else grad_bias


def empty_like(part: Tensor) -> Tensor:
    """[batch, heads, time, head_dim] in the order in which a linear layer makes and takes it, heads side by side."""
    batch, heads, time, head_dim = part.shape
    return part.new_empty(batch, time, heads, head_dim).transpose(1, 2)


def _strided(part: Tensor, batch: int, heads: int) -> structs.TensorView:
    """A tensor's memory; a batch or heads of size 1 are broadcast."""
    strides = part.stride()
    shared = part.shape[0] == 1 and batch > 1, part.shape[1] == 1 and heads > 1
    return structs.TensorView(
        part.data_ptr(), 0 if shared[0] else strides[0], 0 if shared[1] else strides[1], strides[2]
    )


def _run(logsumexp: Tensor, scale: float, is_causal: bool, **parts: Tensor | None) -> None:
    query, key = parts["query"], parts["key"]
    assert query is not None
    assert key is not None
    batch, heads, queries, head_dim = query.shape
    KERNEL.run(
        structs.AttentionArgs(
            **{name: _strided(part, batch, heads) for name, part in parts.items() if part is not None},
            logsumexp=logsumexp.data_ptr(),
            batch=batch,
            heads=heads,
            kv_heads=key.shape[1],
            queries=queries,
            keys=key.shape[2],
            head_dim=head_dim,
            causal=int(is_causal),
            scale=scale,
            num_threads=torch.get_num_threads(),
        )
    )
