"""Cross-entropy over a large vocabulary, without ever holding all of its logits.

The logits of a batch are its largest tensor by far: 2,048 tokens of GPT-2 make 412 MB of them in float32, and as much
again for their gradient. Here they are made for some tokens at a time, in the format of the products, turned into their
gradient where they lie, and forgotten. Only a core's cache full of them is ever float32, if the format is narrower. The
gradients are known on the way forward because nothing comes after a loss but a factor.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from anyformer.kernels.cpu.cross_entropy import can_soften, cross_entropy_
from anyformer.kernels.cpu.int8_matmul import can_round, rounded_product, worth_rounding
from anyformer.kernels.cpu.weight_grad import can_sum, outer_products
from anyformer.kernels.products import product_format

_BYTES = 1 << 28
"""What the logits of a piece of the tokens may take: enough rows for fast products."""

_CACHED, _ELSEWHERE = 1 << 20, 1 << 25
"""Logits of which there are float32 ones at a time, on CPUs and on other devices."""

_WORDS, _ROUNDED_WORDS = 1 << 12, 1 << 14
"""Words whose gradient is made at a time: for it comes in the format of the products and is kept in float32; and where
numbers are rounded, for their integers take room as well."""


def vocabulary_loss(
    x: Float[Tensor, "rows d_model"],
    matrix: Float[Tensor, "vocab d_model"],
    bias: Float[Tensor, " vocab"] | None,
    targets: Int[Tensor, " tokens"],
    smoothing: float = 0.0,
    *,
    rounds: bool = False,
) -> Float[Tensor, ""]:
    """Mean of ``-(1 - s) log p(target) - s mean(log p)`` in nats, where ``p = softmax(x @ matrix.T + bias)``.

    It is differentiable once, in x, matrix and bias. Under autocast the products are computed in its format; all else
    is float32.

    Args:
        x: What comes before the logits, of the tokens that count; more rows than targets count for nothing.
        matrix: A row a word of the vocabulary.
        bias: Added to the logits.
        targets: The right word of each token.
        smoothing: Share s of the target that is spread over all words (Szegedy et al. 2016, section 7).
        rounds: Compute the products in integers of 8 bits, where that is faster.
    """
    dtype = product_format(x)
    rounds = rounds and worth_rounding(dtype, len(x), *matrix.shape) and can_round()
    if not torch.is_grad_enabled():  # Parameters ask for gradients even then.
        matrix, bias = matrix.detach(), None if bias is None else bias.detach()
    with torch.autocast(x.device.type, enabled=False):
        return _VocabularyLoss.apply(x, matrix, bias, targets, smoothing, dtype, rounds)  # pyright: ignore[reportReturnType]


class _VocabularyLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: FunctionCtx,
        x: Tensor,
        matrix: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        smoothing: float,
        dtype: torch.dtype,
        rounds: bool,
    ) -> Tensor:
        count, vocab = len(targets), len(matrix)
        wants_x, wants_matrix, wants_bias = ctx.needs_input_grad[:3]  # pyright: ignore[reportAttributeAccessIssue]
        products = _rounded(matrix, bias, dtype) if rounds else _exact(matrix, bias, dtype, can_sum(x, dtype))
        total = torch.zeros((), dtype=torch.float32, device=x.device)
        grad_x = torch.empty(x.shape, dtype=x.dtype, device=x.device) if wants_x else None
        grad_matrix = torch.empty(matrix.shape, device=x.device) if wants_matrix else None
        if grad_matrix is not None and not len(x):
            grad_matrix.zero_()
        grad_bias = torch.zeros(vocab, dtype=torch.float32, device=x.device) if wants_bias else None
        # In float16 small numbers divided by many tokens vanish.
        late = 1 / max(count, 1) if dtype == torch.float16 else 1.0
        soon = 1 / max(count, 1) / late
        rows = max(1, -(-len(x) // max(1, -(-len(x) * vocab * dtype.itemsize // _BYTES))))
        lose = cross_entropy_ if can_soften(x, dtype) else _cross_entropy_
        for start in range(0, len(x), rows):
            piece, right = x[start : start + rows].to(dtype), targets[start : start + rows, None]
            logits = products.logits(piece)
            logits[len(right) :] = 0
            total += lose(logits[: len(right)], right, smoothing, soon).sum()
            if grad_bias is not None:
                grad_bias += logits.sum(dim=0, dtype=torch.float32)
            if grad_x is not None:
                grad_x[start : start + rows] = products.grad_x(logits)
            if grad_matrix is not None:
                products.outer(logits, piece, grad_matrix, add=start > 0)
        pairs = ((grad_x, x), (grad_matrix, matrix), (grad_bias, bias))
        for grad, _ in pairs:
            if grad is not None and late != 1:
                grad *= late
        kept = [None if grad is None or of is None else grad.to(of.dtype) for grad, of in pairs]
        ctx.save_for_backward(*kept)  # pyright: ignore[reportArgumentType]
        return total / max(count, 1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (factor,) = grad_outputs
        grads = (None if grad is None else grad * factor for grad in ctx.saved_tensors)
        return (*grads, None, None, None, None)


@dataclass(frozen=True, slots=True)
class _Products:
    """``x @ matrix.T + bias``, ``logits @ matrix``, and ``logits.T @ x``, which is put or added to where it belongs."""

    logits: Callable[[Tensor], Tensor]
    grad_x: Callable[[Tensor], Tensor]
    outer: Callable[..., object]


def _exact(matrix: Tensor, bias: Tensor | None, dtype: torch.dtype, tiled: bool) -> _Products:
    words, offset = matrix.to(dtype), None if bias is None else bias.to(dtype)

    def logits(piece: Tensor) -> Tensor:
        return piece @ words.t() if offset is None else torch.addmm(offset, piece, words.t())

    return _Products(logits, lambda logits: logits @ words, outer_products if tiled else _outer_products)


def _rounded(matrix: Tensor, bias: Tensor | None, dtype: torch.dtype) -> _Products:
    """In integers of 8 bits. Most probabilities are less than half of a step, so they are rounded by chance."""

    def logits(piece: Tensor) -> Tensor:
        return rounded_product(piece, matrix, bias, out=torch.empty(len(piece), len(matrix), dtype=dtype))

    def grad_x(logits: Tensor) -> Tensor:
        out = torch.empty(len(logits), matrix.shape[1], dtype=dtype)
        return rounded_product(logits, matrix.t(), out=out, dither=True)

    return _Products(logits, grad_x, _rounded_outer_products)


def _cross_entropy_(
    logits: Float[Tensor, "rows vocab"], right: Int[Tensor, "rows 1"], smoothing: float, factor: float
) -> Float[Tensor, " rows"]:
    """The losses; the logits become `factor` times the gradient of their sum. What is between is float32."""
    some = max(1, (_CACHED if logits.device.type == "cpu" else _ELSEWHERE) // logits.shape[1])
    losses = torch.empty(len(logits), device=logits.device)
    for part, answers, into in zip(logits.split(some), right.split(some), losses.split(some), strict=True):
        scores = part.float()
        answer, best = scores.gather(1, answers), scores.amax(dim=-1, keepdim=True)
        mean = smoothing * scores.mean(dim=-1, keepdim=True) if smoothing else 0.0
        # One exponential of each score: the largest probability, at least 1 / vocab, gives the sum of all.
        gradient = torch.softmax(scores, dim=-1, out=scores)
        level = best - gradient.amax(dim=-1, keepdim=True).log()
        into.copy_((level - (1 - smoothing) * answer - mean).squeeze(1))
        if smoothing:
            gradient -= smoothing / logits.shape[1]
        gradient.scatter_add_(1, answers, gradient.new_full((), smoothing - 1).expand_as(answers))
        gradient *= factor
        if gradient is not part:
            part.copy_(gradient)
    return losses


def _outer_products(
    left: Float[Tensor, "rows vocab"], right: Float[Tensor, "rows d_model"], out: Tensor, *, add: bool
) -> None:
    """``left.T @ right``, in float32; some words at a time, for products come in the format of their factors."""
    for words, columns in zip(out.split(_WORDS), left.split(_WORDS, dim=1), strict=True):
        product = columns.t() @ right
        words.add_(product) if add else words.copy_(product)


def _rounded_outer_products(
    left: Float[Tensor, "rows vocab"], right: Float[Tensor, "rows d_model"], out: Tensor, *, add: bool
) -> None:
    """The same from rounded numbers."""
    for words, columns in zip(out.split(_ROUNDED_WORDS), left.split(_ROUNDED_WORDS, dim=1), strict=True):
        rounded_product(columns.t(), right.t(), out=words, add=add, dither=True)
