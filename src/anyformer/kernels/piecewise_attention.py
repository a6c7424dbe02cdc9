"""Attention for training on a CPU, some queries at a time.

Under a causal mask a query sees only what came before it, so a piece of the queries is multiplied with the keys up to
its end and no more: half of the products of the whole square. The pieces fit a core's cache, and torch's fused kernel
is slowed down by its own bookkeeping: with bfloat16 the pieces gain up to 4x at 26 tokens and 2x at 256, torch's kernel
wins where texts are long (docs/measurements/training.md).
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from anyformer.blocks.mask import Mask
from anyformer.kernels.products import product_format

_PIECE = 64
"""Queries at a time."""

_LONGEST_CAUSAL = {torch.float32: 512}
_LONGEST = {torch.float32: 1}
"""Keys up to which it gains, by the format of the products; other formats have these defaults. Of a single key the
fused kernel makes gradients of queries and keys that are almost zero, where they are zero."""
_OTHER_FORMATS_CAUSAL, _OTHER_FORMATS = 1024, 512


def pays(query: Float[Tensor, "batch heads queries head_dim"], key: Tensor, mask: Mask) -> bool:
    """Whether this is faster than torch's fused kernel: for training on a CPU, with texts that are not too long.

    The fused kernel knows no gradient of what is added to the scores, so a learned bias is always computed here.
    """
    if query.device.type != "cpu" or not query.requires_grad:
        return False
    if mask.scores is not None and mask.scores.requires_grad:
        return True
    if mask.causal:
        return key.shape[2] <= _LONGEST_CAUSAL.get(product_format(query), _OTHER_FORMATS_CAUSAL)
    return key.shape[2] <= _LONGEST.get(product_format(query), _OTHER_FORMATS)


def piecewise_attention(
    query: Float[Tensor, "batch heads queries head_dim"],
    key: Float[Tensor, "batch heads keys head_dim"],
    value: Float[Tensor, "batch heads keys head_dim"],
    scale: float,
    mask: Mask,
) -> Float[Tensor, "batch heads queries head_dim"]:
    """``softmax(scale q k^T + mask) v`` in autocast's format. It is differentiable once, in the mask's bias too.

    A causal mask wants as many queries as keys.
    """
    dtype = product_format(query)
    operands = (query.to(dtype), key.to(dtype), value.to(dtype))
    with torch.autocast(query.device.type, enabled=False):
        return _PiecewiseAttention.apply(*operands, mask.scores, scale, mask.causal)  # pyright: ignore[reportReturnType]


class _PiecewiseAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: FunctionCtx, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float, causal: bool
    ) -> Tensor:
        query = query * scale
        keys, mixed, weights = key.transpose(2, 3), torch.empty_like(query), list[Tensor]()
        for first in range(0, query.shape[2], _PIECE):
            mine = query[:, :, first : first + _PIECE]
            last = first + mine.shape[2]
            seen = last if causal else key.shape[2]
            scores = mine @ keys[..., :seen]
            if causal:
                future = torch.ones(mine.shape[2], mine.shape[2], dtype=torch.bool).triu(1)
                scores[..., first:].masked_fill_(future, -torch.inf)
            if mask is not None:
                here = _rows(mask, first, last)
                scores = scores.masked_fill_(~here, -torch.inf) if here.dtype == torch.bool else scores.add_(here)
            weights.append(scores.softmax(dim=-1))
            mixed[:, :, first:last] = weights[-1] @ value[:, :, :seen]
        ctx.save_for_backward(query, key, value, *weights)
        ctx.scale = scale  # pyright: ignore[reportAttributeAccessIssue]
        ctx.bias = mask if ctx.needs_input_grad[3] else None  # pyright: ignore[reportAttributeAccessIssue]
        return mixed

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        query, key, value, *weights = ctx.saved_tensors
        values = value.transpose(2, 3)
        grad_query, grad_key, grad_value = torch.empty_like(query), torch.zeros_like(key), torch.zeros_like(value)
        grad_bias = None if ctx.bias is None else torch.zeros_like(ctx.bias)
        for first, looks in zip(range(0, query.shape[2], _PIECE), weights, strict=True):
            last, seen = first + looks.shape[2], looks.shape[3]
            grad = grad_outputs[0][:, :, first:last]
            grad_scores = torch.ops.aten._softmax_backward_data(grad @ values[..., :seen], looks, -1, looks.dtype)
            grad_query[:, :, first:last] = grad_scores @ key[:, :, :seen]
            grad_key[:, :, :seen] += grad_scores.transpose(2, 3) @ query[:, :, first:last]
            grad_value[:, :, :seen] += looks.transpose(2, 3) @ grad
            if grad_bias is not None:
                part = _rows(grad_bias, first, last)
                part += grad_scores.sum_to_size(part.shape)
        return grad_query * ctx.scale, grad_key, grad_value, grad_bias, None, None


def _rows(mask: Tensor, first: int, last: int) -> Tensor:
    """The mask of some of the queries, where it isn't the same for all."""
    return mask if mask.shape[2] == 1 else mask[:, :, first:last]
