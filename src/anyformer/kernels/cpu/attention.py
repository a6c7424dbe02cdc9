"""Attention for training in compiled code, on processors that multiply pairs of numbers (see attention.cpp)."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from anyformer.blocks.mask import Mask
from anyformer.kernels.cpu import structs
from anyformer.kernels.cpu.library import Kernel, supports_bf16

KERNEL = Kernel("attention")

_BLOCK = 128
"""Queries that compiled code looks at together: rows of a bias have room for whole blocks."""


def can_attend(query: Tensor, mask: Mask) -> bool:
    """Whether `attention` is there for this; it waits for the compiler."""
    bias = mask.scores
    if bias is not None and bias.requires_grad and bias.shape[1:3] != query.shape[1:3]:
        return False
    return supports_bf16(query) and KERNEL.supported()


def attention(
    query: Float[Tensor, "batch heads queries head_dim"],
    key: Float[Tensor, "batch kv_heads keys head_dim"],
    value: Float[Tensor, "batch kv_heads keys head_dim"],
    scale: float,
    mask: Mask,
) -> Float[Tensor, "batch heads queries head_dim"]:
    """``softmax(scale q k^T + mask) v`` in bfloat16 with sums in float32. It is differentiable once, in the mask too.

    Under a causal mask there are as many queries as keys.
    """
    bias = mask.scores
    if bias is not None and bias.dtype == torch.bool:
        bias = torch.zeros(bias.shape).masked_fill_(~bias, -torch.inf)
    operands = (part.bfloat16() for part in (query, key, value))
    with torch.autocast("cpu", enabled=False):
        return _Attention.apply(*operands, bias, scale, mask.causal)  # pyright: ignore[reportReturnType]


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: FunctionCtx, query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, scale: float, causal: bool
    ) -> Tensor:
        parts = {name: _lying(part) for name, part in (("query", query), ("key", key), ("value", value))}
        levels = torch.empty(query.shape[:3])
        parts["out"] = _like(query)
        if bias is not None:
            parts["bias"] = _turned(bias.expand(-1, -1, query.shape[2], -1))
        _run(levels, scale, causal, **parts)
        ctx.save_for_backward(levels, *parts.values())
        ctx.about = tuple(parts), scale, causal  # pyright: ignore[reportAttributeAccessIssue]
        return parts["out"]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (levels, *tensors), (names, scale, causal) = ctx.saved_tensors, ctx.about
        parts = dict(zip(names, tensors, strict=True))
        grads = {f"grad_{name}": _like(parts[name]) for name in ("query", "key", "value")}
        if ctx.needs_input_grad[3]:
            grads["grad_bias"] = torch.zeros_like(parts["bias"])
        _run(levels, scale, causal, **parts, grad_out=_lying(grad_outputs[0].bfloat16()), **grads)
        grad_bias = grads.pop("grad_bias", None)
        if grad_bias is not None:
            grad_bias = grad_bias[..., : levels.shape[2]].transpose(2, 3)
        return (*grads.values(), grad_bias, None, None)


def _like(part: Tensor) -> Tensor:
    """[batch, heads, time, head_dim] in the order in which a linear layer makes and takes it, heads side by side."""
    batch, heads, time, head_dim = part.shape
    return torch.empty(batch, time, heads, head_dim, dtype=torch.bfloat16).transpose(1, 2)


def _lying(part: Tensor) -> Tensor:
    """The tensor, with the numbers of a head side by side."""
    return part if part.stride(3) == 1 else part.contiguous()


def _turned(bias: Float[Tensor, "#batch #heads queries keys"]) -> Float[Tensor, "#batch #heads keys room"]:
    """Keys by queries; zeros make up whole blocks of these."""
    queries = bias.shape[2]
    out = torch.empty(*bias.shape[:2], bias.shape[3], queries + -queries % _BLOCK)
    out[..., :queries] = bias.transpose(2, 3)
    out[..., queries:] = 0
    return out


def _place(part: Tensor, batch: int, heads: int) -> structs.TensorView:
    """Where a tensor lies; what it has but once serves all texts, or all heads."""
    steps = part.stride()
    shared = part.shape[0] == 1 and batch > 1, part.shape[1] == 1 and heads > 1
    return structs.TensorView(part.data_ptr(), 0 if shared[0] else steps[0], 0 if shared[1] else steps[1], steps[2])


def _run(levels: Tensor, scale: float, causal: bool, **parts: Tensor) -> None:
    query, key = parts["query"], parts["key"]
    places = {name: _place(part, len(query), query.shape[1]) for name, part in parts.items()}
    batch, heads, queries, head_dim = query.shape
    described = structs.AttentionArgs(
        **places,
        logsumexp=levels.data_ptr(),
        batch=batch,
        heads=heads,
        kv_heads=key.shape[1],
        queries=queries,
        keys=key.shape[2],
        head_dim=head_dim,
        causal=int(causal),
        scale=scale,
        num_threads=torch.get_num_threads(),
    )
    KERNEL.run(described)
