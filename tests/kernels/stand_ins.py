"""Torch in the place of compiled code: the same functions, for processors that can't run it."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from anyformer.kernels import cross_entropy, reference
from anyformer.kernels.activation import COMPILED
from anyformer.kernels.autocast import matmul_dtype
from anyformer.kernels.cpu import attention, matmul

activation: Any = import_module("anyformer.kernels.activation")  # where functions of the package have their names
rms_norm: Any = import_module("anyformer.kernels.norm")
rotary: Any = import_module("anyformer.kernels.rotary")

FUNCTIONS = {kind: function for function, kind in COMPILED.items()}


def use_stand_ins(patch: pytest.MonkeyPatch) -> None:
    """Replace every function of training's kernels."""

    def supports(x: Tensor, dtype: torch.dtype | None = None) -> bool:
        return (dtype or matmul_dtype(x)) == torch.bfloat16

    for module in (activation, cross_entropy, rms_norm, rotary):
        patch.setattr(module.KERNEL, "supports_bf16", supports)
    patch.setattr(matmul, "supports_bf16", supports)
    patch.setattr(matmul, "bf16_is_faster", lambda x, outputs, dtype=None: supports(x, dtype))
    patch.setattr(attention, "supports", lambda query, dtype, dropout_p: dtype == torch.bfloat16 and not dropout_p)
    for module, functions in (
        (attention, (_attention_forward, _attention_backward)),
        (activation, (_activation_forward, _activation_backward)),
        (rms_norm, (_rms_norm_forward, _rms_norm_backward)),
    ):
        for name, function in zip(("forward", "backward"), functions, strict=True):
            patch.setattr(getattr(module, name), "function", function)
    patch.setattr(rotary.forward, "function", _rotate)
    patch.setattr(cross_entropy, "compiled_loss_and_grad_", _loss_and_grad_)
    patch.setattr(matmul, "bf16_matmul", _bf16_matmul)


def _gradients(function: Callable[..., Tensor], operands: list[Tensor], grad: Tensor) -> list[Tensor]:
    with torch.enable_grad(), torch.autocast("cpu", enabled=False):
        leaves = [part.detach().float().requires_grad_() for part in operands]
        return list(torch.autograd.grad(function(*leaves), leaves, grad.float()))


def _attend(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, scale: float, causal: bool
) -> tuple[Any, Any]:
    groups = query.shape[1] // key.shape[1]
    key, value = (part.float().repeat_interleave(groups, dim=1) for part in (key, value))
    scores = query.float() * scale @ key.transpose(2, 3)
    if bias is not None:
        scores = scores + bias[..., : query.shape[2]].transpose(2, 3)
    if causal:
        scores = scores.masked_fill(torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1), -torch.inf)
    weights = scores.softmax(dim=-1)
    weights = weights.masked_fill((scores == -torch.inf).all(dim=-1, keepdim=True), 0.0)
    return weights @ value, scores.logsumexp(dim=-1)


def _attention_forward(
    query: Tensor, key: Tensor, value: Tensor, bias: Any, scale: float, causal: bool, *_: Any
) -> Any:
    out, logsumexp = _attend(query, key, value, bias, scale, causal)
    return attention.empty_like(query).copy_(out), logsumexp


def _attention_backward(
    grad, query, key, value, bias, seed, counters, out, logsumexp, scale, causal, dropout_p, wants_bias
):  # type: ignore[no-untyped-def]
    operands = [query, key, value, *([bias] if wants_bias else [])]

    def attend(query: Tensor, key: Tensor, value: Tensor, with_grad: Tensor | None = None) -> Tensor:
        return _attend(query, key, value, bias if with_grad is None else with_grad, scale, causal)[0]

    grads = [part.nan_to_num(0.0) for part in _gradients(attend, operands, grad)]
    made = [attention.empty_like(part).copy_(found) for part, found in zip(operands[:3], grads, strict=False)]
    return *made, grads[3] if wants_bias else torch.empty(0)


def _activation_forward(x: Tensor, multiplier: Tensor | None, kind: int) -> Tensor:
    out = FUNCTIONS[kind](x.float())
    return (out if multiplier is None else out * multiplier.float()).to(x.dtype)


def _activation_backward(grad: Tensor, x: Tensor, multiplier: Tensor | None, kind: int) -> tuple[Tensor, Tensor]:
    def activate(x: Tensor, multiplier: Tensor | None = None) -> Tensor:
        return FUNCTIONS[kind](x) * (1 if multiplier is None else multiplier)

    grads = _gradients(activate, [x, *([] if multiplier is None else [multiplier])], grad)
    grads = [part.to(x.dtype) for part in grads]
    return grads[0], x.new_empty(0) if multiplier is None else grads[1]


def _rms_norm_forward(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    rstd = torch.rsqrt(x.float().square().mean(dim=-1) + eps)
    return (x.float() * rstd[..., None] * weight).to(x.dtype), rstd


def _rms_norm_backward(grad: Tensor, x: Tensor, weight: Tensor, rstd: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    grads = _gradients(lambda x, weight: F.rms_norm(x, weight.shape, weight, eps), [x, weight], grad)
    return grads[0].to(x.dtype), grads[1]


def _rotate(x: Tensor, cos: Tensor, sin: Tensor, dtype: torch.dtype, transposed: bool) -> Tensor:
    if not transposed:
        return reference.rotate(x.float(), cos, sin).to(dtype)
    return _gradients(lambda x: reference.rotate(x, cos, sin), [x], x)[0].to(dtype)


def _loss_and_grad_(logits: Tensor, targets: Tensor, label_smoothing: float, grad_scale: float) -> Tensor:
    rows, vocab = logits.shape
    if rows and (targets.min() < 0 or targets.max() >= vocab):
        raise IndexError(f"targets lie in [{targets.min()}, {targets.max()}], but the vocabulary has {vocab} tokens")
    targets = targets.long().squeeze(1)

    def loss(logits: Tensor) -> Tensor:
        return F.cross_entropy(logits, targets, label_smoothing=label_smoothing, reduction="none")

    losses = loss(logits.float())
    logits.copy_(_gradients(loss, [logits], torch.full((rows,), grad_scale))[0])
    return losses


def _bf16_matmul(
    left: Tensor, right: Tensor, bias: Tensor | None = None, *, out: Tensor, sums: Any = None, add: bool = False
) -> Tensor:
    product = left.bfloat16().float() @ right.bfloat16().float().t()
    if bias is not None:
        product += bias
    if sums is not None:
        sums.copy_(left.float().sum(dim=1))
    return out.add_(product) if add else out.copy_(product)
