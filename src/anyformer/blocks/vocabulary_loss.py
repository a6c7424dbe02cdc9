"""Cross-entropy over a large vocabulary, without ever holding all of its logits.

The logits of a batch are its largest tensor by far: 2,048 tokens of GPT-2 make 412 MB of them in float32, and as much
again for their gradient. Here they are made for some tokens at a time, turned into the loss and its gradients at once,
and forgotten. The gradients are known on the way forward because nothing comes after a loss but a factor.
"""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

_LOGITS = 1 << 25
"""How many logits there are at a time: enough rows for fast products, 128 MB in float32."""


def vocabulary_loss(
    x: Float[Tensor, "tokens d_model"],
    matrix: Float[Tensor, "vocab d_model"],
    bias: Float[Tensor, " vocab"] | None,
    targets: Int[Tensor, " tokens"],
    smoothing: float = 0.0,
) -> Float[Tensor, ""]:
    """Mean of ``-(1 - s) log p(target) - s mean(log p)`` in nats, where ``p = softmax(x @ matrix.T + bias)``.

    It is differentiable once, in x, matrix and bias. Under autocast the products are computed in its format; all else
    is float32.

    Args:
        x: What comes before the logits, of the tokens that count.
        matrix: A row a word of the vocabulary.
        bias: Added to the logits.
        targets: The right word of each token.
        smoothing: Share s of the target that is spread over all words (Szegedy et al. 2016, section 7).
    """
    kind = x.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
    with torch.autocast(kind, enabled=False):
        return _VocabularyLoss.apply(x, matrix, bias, targets, smoothing, dtype)  # pyright: ignore[reportReturnType]


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
    ) -> Tensor:
        count, vocab = len(x), len(matrix)
        wants_x, wants_matrix, wants_bias = ctx.needs_input_grad[:3]  # pyright: ignore[reportAttributeAccessIssue]
        backward = wants_x or wants_matrix or wants_bias
        words = matrix.to(dtype)
        total = torch.zeros((), dtype=torch.float32, device=x.device)
        grad_x = torch.empty_like(x) if wants_x else None
        grad_matrix = torch.zeros_like(matrix, dtype=torch.float32) if wants_matrix else None
        grad_bias = torch.zeros(vocab, dtype=torch.float32, device=x.device) if wants_bias else None
        # The gradient of the sum is kept, not of the mean: small numbers divided by many tokens vanish in float16.
        rows = max(1, -(-count // max(1, -(-count * vocab // _LOGITS))))
        for start in range(0, count, rows):
            piece, right = x[start : start + rows].to(dtype), targets[start : start + rows, None]
            scores = torch.mm(piece, words.t()) if bias is None else torch.addmm(bias.to(dtype), piece, words.t())
            scores = scores.float()
            answer, best = scores.gather(1, right), scores.amax(dim=-1, keepdim=True)
            if smoothing:
                total -= smoothing * scores.mean(dim=-1).sum()
            # One exponential of each score: the largest probability, at least 1 / vocab, gives the sum of all.
            gradient = torch.softmax(scores, dim=-1, out=scores)
            level = best - gradient.amax(dim=-1, keepdim=True).log()
            total += (level - (1 - smoothing) * answer).sum()
            if not backward:
                continue
            if smoothing:
                gradient -= smoothing / vocab
            gradient.scatter_add_(1, right, gradient.new_full((), smoothing - 1).expand_as(right))
            narrow = gradient.to(dtype)
            if grad_x is not None:
                grad_x[start : start + rows] = narrow @ words
            if grad_matrix is not None and dtype == torch.float32:
                grad_matrix.addmm_(narrow.t(), piece)
            elif grad_matrix is not None:
                grad_matrix += narrow.t() @ piece
            if grad_bias is not None:
                grad_bias += gradient.sum(dim=0)
        share = 1 / max(count, 1)
        pairs = ((grad_x, x), (grad_matrix, matrix), (grad_bias, bias))
        kept = [None if grad is None or of is None else grad.mul_(share).to(of.dtype) for grad, of in pairs]
        ctx.save_for_backward(*kept)  # pyright: ignore[reportArgumentType]
        return total * share

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (factor,) = grad_outputs
        grads = (None if grad is None else grad * factor for grad in ctx.saved_tensors)
        return (*grads, None, None, None)
