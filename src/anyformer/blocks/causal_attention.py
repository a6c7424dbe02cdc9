"""Causal attention for training on a CPU, some queries at a time.

A query sees only what came before it, so a piece of the queries is multiplied with the keys up to its end and no more:
half of the products of the whole square. The pieces fit a core's cache, where torch's fused kernel is slowed down by
its own bookkeeping. With bfloat16 that gains up to 2x at 512 tokens; torch's kernel wins where texts are long
(docs/log.md).
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

_PIECE = 64
"""Queries at a time."""


_LONGEST = {torch.float32: 512}
"""Tokens up to which it gains, by the format of the products."""


def pays(query: Float[Tensor, "batch heads time head_dim"]) -> bool:
    """Whether this is faster than torch's fused kernel: for training on a CPU, with texts that are not too long."""
    return query.device.type == "cpu" and query.requires_grad and query.shape[2] <= _LONGEST.get(_format(query), 1024)


def causal_attention(
    query: Float[Tensor, "batch heads time head_dim"],
    key: Float[Tensor, "batch heads time head_dim"],
    value: Float[Tensor, "batch heads time head_dim"],
    scale: float,
) -> Float[Tensor, "batch heads time head_dim"]:
    """``softmax(scale q k^T) v`` where no query sees a later key, in autocast's format. It is differentiable once."""
    dtype = _format(query)
    with torch.autocast(query.device.type, enabled=False):
        return _CausalAttention.apply(query.to(dtype), key.to(dtype), value.to(dtype), scale)  # pyright: ignore[reportReturnType]


def _format(query: Tensor) -> torch.dtype:
    kind = query.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else query.dtype


class _CausalAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        query = query * scale
        keys, mixed, weights = key.transpose(2, 3), torch.empty_like(query), list[Tensor]()
        for first in range(0, query.shape[2], _PIECE):
            mine = query[:, :, first : first + _PIECE]
            end = first + mine.shape[2]
            scores = mine @ keys[..., :end]
            future = torch.ones(mine.shape[2], mine.shape[2], dtype=torch.bool).triu(1)
            scores[..., first:].masked_fill_(future, -torch.inf)
            weights.append(scores.softmax(dim=-1))
            mixed[:, :, first:end] = weights[-1] @ value[:, :, :end]
        ctx.save_for_backward(query, key, value, *weights)
        ctx.scale = scale  # pyright: ignore[reportAttributeAccessIssue]
        return mixed

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        query, key, value, *weights = ctx.saved_tensors
        values = value.transpose(2, 3)
        grad_query, grad_key, grad_value = torch.empty_like(query), torch.zeros_like(key), torch.zeros_like(value)
        for first, seen in zip(range(0, query.shape[2], _PIECE), weights, strict=True):
            end = seen.shape[3]
            grad = grad_outputs[0][:, :, first:end]
            grad_scores = torch.ops.aten._softmax_backward_data(grad @ values[..., :end], seen, -1, seen.dtype)
            grad_query[:, :, first:end] = grad_scores @ key[:, :, :end]
            grad_key[:, :, :end] += grad_scores.transpose(2, 3) @ query[:, :, first:end]
            grad_value[:, :, :end] += seen.transpose(2, 3) @ grad
        return grad_query * ctx.scale, grad_key, grad_value, None
