"""Attention in training, on processors that multiply pairs of bfloat16 numbers (see attention.cpp)."""

from typing import Any

import torch
from torch import Tensor

from anyformer.kernels.cpu import structs
from anyformer.kernels.cpu.library import Kernel, supports_bf16
from anyformer.kernels.operation import operation

KERNEL = Kernel("attention", structs.AttentionArgs)

QUERY_BLOCK = 128
"""Queries that compiled code computes together: rows of a bias have room for whole blocks."""


def supports(query: Tensor) -> bool:
    """Whether compiled code attends to this; it waits for the compiler."""
    return supports_bf16(query) and KERNEL.supported()


@operation("attention")
def forward(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, scale: float, is_causal: bool
) -> tuple[Tensor, Tensor]:
    """``softmax(scale q k^T + bias) v`` with sums in float32, and the logsumexp of each query's scores.

    Args:
        query: [batch, heads, queries, head_dim] in bfloat16.
        key, value: [batch, kv_heads, keys, head_dim], likewise.
        bias: [1 or batch, 1 or heads, keys, queries rounded up to whole `QUERY_BLOCK`s] in float32.
        is_causal: Queries see only keys up to their own position; there are as many queries as keys.

    Returns:
        [batch, heads, queries, head_dim] in bfloat16, and [batch, heads, queries] in float32.
    """
    out, logsumexp = empty_like(query), query.new_empty(query.shape[:3], dtype=torch.float32)
    _run(query, key, value, bias, scale, is_causal, out=out, logsumexp=logsumexp)
    return out, logsumexp


@operation("attention_backward")
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
    grad = _contiguous_heads(grad.bfloat16())
    saved = {"out": out, "logsumexp": logsumexp}
    _run(query, key, value, bias, scale, is_causal, **saved, grad_out=grad, grad_bias=grad_bias, **grads)
    return grad_query, grad_key, grad_value, grad.new_empty(0) if grad_bias is None else grad_bias


def empty_like(part: Tensor) -> Tensor:
    """[batch, heads, time, head_dim] in the order in which a linear layer makes and takes it, heads side by side."""
    batch, heads, time, head_dim = part.shape
    return part.new_empty(batch, time, heads, head_dim).transpose(1, 2)


def _contiguous_heads(part: Tensor) -> Tensor:
    return part if part.stride(3) == 1 else part.contiguous()


def _run(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor | None,
    scale: float,
    is_causal: bool,
    *,
    grad_bias: Tensor | None = None,
    **tensors: Tensor,
) -> None:
    operands = {"query": query, "key": key, "value": value}
    tensors |= {name: _contiguous_heads(part) for name, part in operands.items()}
    for name, part in (("bias", bias), ("grad_bias", grad_bias)):
        if part is not None:
            tensors[name] = part.expand(*query.shape[:2], -1, -1)
    KERNEL.run(
        **tensors,
        batch=query.shape[0],
        heads=query.shape[1],
        kv_heads=key.shape[1],
        queries=query.shape[2],
        keys=key.shape[2],
        head_dim=query.shape[3],
        causal=is_causal,
        scale=scale,
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *operands, ctx.scale, ctx.is_causal = inputs
    ctx.save_for_backward(*operands, *output)
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad: Tensor, _: None) -> tuple[Tensor | None, ...]:
    wants_bias = ctx.needs_input_grad[3]
    query, key, value, bias, out, logsumexp = ctx.saved_tensors
    *grads, grad_bias = backward(grad, query, key, value, bias, out, logsumexp, ctx.scale, ctx.is_causal, wants_bias)
    return *grads, grad_bias if wants_bias else None, None, None


forward.register_autograd(_backward, setup_context=_setup_context)
