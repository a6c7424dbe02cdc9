"""Attention (see attention.cpp and attention_fp32.cpp)."""

import torch
from torch import Tensor

from anyformer.kernels.cpu import structs
from anyformer.kernels.cpu.library import Kernel
from anyformer.kernels.operation import constant_result, operation
from anyformer.native.levels import has_avx512_bf16

_BF16 = Kernel("attention", structs.AttentionArgs, "attention in bfloat16", "avx512bf16")
_FP32 = Kernel("attention_fp32", structs.AttentionArgs, "attention", "avx512vnni")
_LEVELS = 1 << 32


def supports(query: Tensor, dtype: torch.dtype, dropout_p: float = 0.0) -> bool:
    """Whether compiled code attends to this in a dtype."""
    if query.device.type != "cpu" or dtype not in structs.DTYPES or round(dropout_p * _LEVELS) == _LEVELS:
        return False
    return _has_kernel(dtype, dropout_p)


@constant_result
def _has_kernel(dtype: torch.dtype, dropout_p: float) -> bool:
    return kernel(dtype, dropout_p).supported()


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
    counters: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """``dropout(softmax(scale q k^T + bias)) v`` with sums in float32, and the logsumexp of each query's scores.

    Args:
        query: [batch, heads, queries, head_dim] in float32 or bfloat16.
        key, value: [batch, kv_heads, keys, head_dim], likewise.
        bias: [1 or batch, 1 or heads, keys, queries rounded up to whole `query_block`s] in float32.
        is_causal: Queries see only keys up to their own position; there are as many queries as keys.
        dropout_p: Probability of dropping a weight.
        seed: 64 random bits, from which forward and backward pass find the dropped weights; None: there are none.
        counters: [batch] in int64, those of `head_counters`.

    Returns:
        [batch, heads, queries, head_dim] in the dtype of the operands, and [batch, heads, queries] in float32.
    """
    out, logsumexp = empty_like(query), query.new_empty(query.shape[:3], dtype=torch.float32)
    tensors = {"value": value, "bias": bias, "seed": seed, "counters": counters, "out": out, "logsumexp": logsumexp}
    _run(query, key, scale, is_causal, dropout_p, **tensors)
    return out, logsumexp


@operation("attention_backward")
def backward(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor | None,
    seed: Tensor | None,
    counters: Tensor | None,
    out: Tensor,
    logsumexp: Tensor,
    scale: float,
    is_causal: bool,
    dropout_p: float,
    bias_requires_grad: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradients of query, key, value and bias; that of the bias is empty if it isn't needed."""
    grad_query, grad_key, grad_value = empty_like(query), empty_like(key), empty_like(value)
    grad_bias = torch.zeros_like(bias) if bias is not None and bias_requires_grad else None
    tensors = {"value": value, "bias": bias, "seed": seed, "counters": counters, "out": out, "logsumexp": logsumexp}
    tensors |= {"grad_query": grad_query, "grad_key": grad_key, "grad_value": grad_value}
    tensors |= {"grad_out": grad.to(query.dtype), "grad_bias": grad_bias}
    _run(query, key, scale, is_causal, dropout_p, **tensors)
    return grad_query, grad_key, grad_value, grad.new_empty(0) if grad_bias is None else grad_bias


def empty_like(part: Tensor) -> Tensor:
    """[batch, heads, time, head_dim] in the order in which a linear layer makes and takes it, heads side by side."""
    batch, heads, time, head_dim = part.shape
    return part.new_empty(batch, time, heads, head_dim).transpose(1, 2)


def _run(query: Tensor, key: Tensor, scale: float, is_causal: bool, dropout_p: float, **tensors: Tensor | None) -> None:
    tensors |= {"query": query, "key": key}
    for name, tensor in tensors.items():
        if tensor is not None and name in ("bias", "grad_bias"):
            tensors[name] = tensor.expand(*query.shape[:2], -1, -1)
        elif tensor is not None and tensor.dim() == 4 and tensor.stride(3) != 1:
            tensors[name] = tensor.contiguous()
    threshold = round(dropout_p * _LEVELS)
    kernel(query.dtype, dropout_p).run(
        **tensors,
        **dict(zip(("batch", "heads", "queries", "head_dim"), query.shape, strict=True)),
        kv_heads=key.shape[1],
        keys=key.shape[2],
        causal=is_causal,
        scale=scale,
        dtype=structs.DTYPES[query.dtype],
        threshold=threshold,
        kept_scale=_LEVELS / (_LEVELS - threshold),
    )


forward.register_autograd(
    backward,
    saved=lambda inputs, outputs, needed: (*inputs[:4], *inputs[7:], *outputs, *inputs[4:7], needed[3]),
)
