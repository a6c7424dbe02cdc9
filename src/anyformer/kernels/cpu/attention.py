"""Attention (see attention.cpp and attention_fp32.cpp)."""

from typing import Any

import torch
from torch import Tensor

from anyformer.kernels.cpu import structs
from anyformer.kernels.cpu.library import Kernel
from anyformer.kernels.cpu_features import enabled, has_avx512_bf16
from anyformer.kernels.operation import constant_result, operation

_BF16 = Kernel("attention", structs.AttentionArgs)
_FP32 = Kernel("attention_fp32", structs.AttentionArgs)
_LEVELS = 1 << 32


def supports(query: Tensor, dtype: torch.dtype, dropout_p: float = 0.0) -> bool:
    """Whether compiled code attends to this in a dtype; it waits for the compiler."""
    if query.device.type != "cpu" or dtype not in structs.DTYPES or round(dropout_p * _LEVELS) == _LEVELS:
        return False
    return _has_kernel(dtype, dropout_p)


@constant_result
def _has_kernel(dtype: torch.dtype, dropout_p: float) -> bool:
    return enabled() and kernel(dtype, dropout_p).supported()


def kernel(dtype: torch.dtype, dropout_p: float = 0.0) -> Kernel:
    """The one with products of bfloat16, on processors that multiply pairs of them and where nothing is dropped; the
    one with products of float32."""
    return _BF16 if dtype == torch.bfloat16 and dropout_p == 0.0 and has_avx512_bf16() else _FP32


@constant_result
def query_block(dtype: torch.dtype, dropout_p: float = 0.0) -> int:
    """Queries whose scores are computed together: rows of a bias have room for whole blocks."""
    return 128 if kernel(dtype, dropout_p) is _BF16 else 16


@operation("attention")
def forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor | None,
    scale: float,
    is_causal: bool,
    dropout_p: float,
    seed: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """``dropout(softmax(scale q k^T + bias)) v`` with sums in float32, and the logsumexp of each query's scores.

    Args:
        query: [batch, heads, queries, head_dim] in float32 or bfloat16.
        key, value: [batch, kv_heads, keys, head_dim], likewise.
        bias: [1 or batch, 1 or heads, keys, queries rounded up to whole `query_block`s] in float32.
        is_causal: Queries see only keys up to their own position; there are as many queries as keys.
        dropout_p: Probability of dropping a weight.
        seed: 64 random bits, from which forward and backward pass find the dropped weights; None: there are none.

    Returns:
        [batch, heads, queries, head_dim] in the dtype of the operands, and [batch, heads, queries] in float32.
    """
    out, logsumexp = empty_like(query), query.new_empty(query.shape[:3], dtype=torch.float32)
    _run(query, key, value, bias, scale, is_causal, dropout_p, seed, out=out, logsumexp=logsumexp)
    return out, logsumexp


@operation("attention_backward")
def backward(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor | None,
    seed: Tensor | None,
    out: Tensor,
    logsumexp: Tensor,
    scale: float,
    is_causal: bool,
    dropout_p: float,
    bias_requires_grad: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradients of query, key, value and bias; that of the bias is empty if it isn't wanted."""
    grad_query, grad_key, grad_value = empty_like(query), empty_like(key), empty_like(value)
    grads = {"grad_query": grad_query, "grad_key": grad_key, "grad_value": grad_value}
    grad_bias = torch.zeros_like(bias) if bias is not None and bias_requires_grad else None
    grad = _contiguous_heads(grad.to(query.dtype))
    saved = {"out": out, "logsumexp": logsumexp}
    options = scale, is_causal, dropout_p, seed
    _run(query, key, value, bias, *options, **saved, grad_out=grad, grad_bias=grad_bias, **grads)
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
    dropout_p: float,
    seed: Tensor | None,
    *,
    grad_bias: Tensor | None = None,
    **tensors: Tensor,
) -> None:
    operands = {"query": query, "key": key, "value": value}
    tensors |= {name: _contiguous_heads(part) for name, part in operands.items()}
    for name, part in (("bias", bias), ("grad_bias", grad_bias)):
        if part is not None:
            tensors[name] = part.expand(*query.shape[:2], -1, -1)
    threshold = round(dropout_p * _LEVELS)
    kernel(query.dtype, dropout_p).run(
        **tensors,
        batch=query.shape[0],
        heads=query.shape[1],
        kv_heads=key.shape[1],
        queries=query.shape[2],
        keys=key.shape[2],
        head_dim=query.shape[3],
        causal=is_causal,
        scale=scale,
        dtype=structs.DTYPES[query.dtype],
        seed=seed,
        threshold=threshold,
        kept_scale=_LEVELS / (_LEVELS - threshold),
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *operands, ctx.scale, ctx.is_causal, ctx.dropout_p, seed = inputs
    ctx.save_for_backward(*operands, seed, *output)
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad: Tensor, _: None) -> tuple[Tensor | None, ...]:
    query, key, value, bias, seed, out, logsumexp = ctx.saved_tensors
    wants_bias = ctx.needs_input_grad[3]
    options = ctx.scale, ctx.is_causal, ctx.dropout_p, wants_bias
    *grads, grad_bias = backward(grad, query, key, value, bias, seed, out, logsumexp, *options)
    return *grads, grad_bias if wants_bias else None, None, None, None, None


forward.register_autograd(_backward, setup_context=_setup_context)
