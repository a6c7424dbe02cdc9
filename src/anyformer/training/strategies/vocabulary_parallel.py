"""The vocabulary spread over processes: rows of the embedding table, logits of the head, and the loss of both.

No process holds all logits of a token: of each chunk of tokens the processes exchange the largest logit, the sum of the
exponentials and the logit of the target (Shoeybi et al. 2019, Megatron-LM, section 3).
"""

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from anyformer.blocks.head import LanguageModelHead
from anyformer.blocks.linear import Embedding
from anyformer.kernels.autocast import autocast_disabled, matmul_dtype
from anyformer.kernels.cross_entropy import WithGradients, in_chunks
from anyformer.training.strategies.parallel_layers import Parallel, enter, gather, leave, own_rows

_BYTES = 1 << 26
"""Size of the logits of a chunk of tokens in float32."""


class VocabularyEmbedding(Parallel, Embedding):
    """A table whose rows are spread: a process looks its own up, and the sum has all."""

    def forward(self, ids: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Look up the rows of the ids."""
        rows = own_rows(self.num_embeddings, self.mesh)
        is_own = (ids >= rows.start) & (ids < rows.stop)
        own = super().forward((ids - rows.start).where(is_own, 0))
        return leave(own.masked_fill(~is_own[..., None], 0.0), self.mesh)


class VocabularyHead(Parallel, LanguageModelHead):
    """A head each of whose processes computes the logits of some tokens of the vocabulary.

    Attributes:
        vocab_size: of all processes.
    """

    vocab_size: int

    def forward(self, x: Tensor, tied_weight: Any = None) -> Tensor:
        """Score every token of the vocabulary."""
        logits = super().forward(x, tied_weight)
        return gather(logits, self.mesh, logits.dim() - 1, self.vocab_size)

    def cross_entropy(self, x: Tensor, weight: Any, targets: Tensor, label_smoothing: float) -> Tensor:
        """The mean loss, without ever holding all logits."""
        bias = self.bias
        return linear_cross_entropy(x, weight, targets, bias, label_smoothing, self.mesh, self.vocab_size)

    def _transform(self, x: Tensor) -> Tensor:
        return enter(super()._transform(x), self.mesh)


def linear_cross_entropy(
    hidden: Float[Tensor, "rows d_model"],
    weight: Float[Tensor, "own_vocab d_model"],
    target: Int[Tensor, " tokens"],
    bias: Float[Tensor, " own_vocab"] | None,
    label_smoothing: float,
    mesh: DeviceMesh,
    vocab_size: int,
) -> Float[Tensor, ""]:
    """`kernels.linear_cross_entropy` of a weight whose rows are spread; hidden states get the own rows' gradient."""
    dtype, operands = matmul_dtype(hidden), (hidden, weight, bias)
    grads = [
        torch.zeros_like(part, dtype=torch.float32)
        if torch.is_grad_enabled() and part is not None and part.requires_grad
        else None
        for part in operands
    ]

    def forward(x: Tensor) -> Tensor:
        return F.linear(x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype))

    def backward(logits: Tensor, rows: slice) -> None:
        if grads[0] is not None:
            grads[0][rows] = (logits @ weight.to(dtype)).float()
        if grads[1] is not None:
            grads[1] += logits.t() @ hidden[rows].to(dtype)
        if grads[2] is not None:
            grads[2] += logits.sum(dim=0, dtype=torch.float32)

    def loss_and_grad(logits: Tensor, targets: Tensor, smoothing: float, scale: float | Tensor) -> Tensor:
        return _loss_and_grad_(logits, targets, smoothing, scale, mesh, vocab_size)

    most_rows = max(1, _BYTES // (4 * max(1, len(weight))))
    with torch.no_grad(), autocast_disabled(hidden):
        loss, scale = in_chunks(hidden, target, label_smoothing, forward, backward, most_rows, dtype, loss_and_grad)
        scaled = [grad if grad is None or scale is None else grad * scale for grad in grads]
        typed = [g if g is None or p is None else g.to(p.dtype) for g, p in zip(scaled, operands, strict=True)]
    return WithGradients.apply(loss, typed, *operands)  # pyright: ignore[reportReturnType]


def _loss_and_grad_(
    logits: Float[Tensor, "rows own_vocab"],
    targets: Int[Tensor, "rows 1"],
    label_smoothing: float,
    grad_scale: float | Float[Tensor, "rows 1"],
    mesh: DeviceMesh,
    vocab_size: int,
) -> Float[Tensor, " rows"]:
    """`kernels.cross_entropy.loss_and_grad_` of the logits of this process."""
    group, own = mesh.get_group(), own_rows(vocab_size, mesh)
    scores, index = logits.float(), targets - own.start
    is_own = (index >= 0) & (index < scores.shape[1])
    index = index.where(is_own, 0)
    largest = scores.amax(dim=1, keepdim=True)
    dist.all_reduce(largest, dist.ReduceOp.MAX, group)
    shifted = scores - largest
    exponentials = shifted.exp()
    sums = torch.cat(
        (exponentials.sum(1, True), shifted.gather(1, index).where(is_own, 0.0), shifted.sum(1, True)), dim=1
    )
    dist.all_reduce(sums, group=group)
    total, right, mean = sums[:, :1], sums[:, 1], sums[:, 2] / vocab_size
    losses = total[:, 0].log() - (1 - label_smoothing) * right - label_smoothing * mean
    grad = exponentials.div_(total)
    if label_smoothing:
        grad -= label_smoothing / vocab_size
    grad.scatter_add_(1, index, is_own.to(grad) * (label_smoothing - 1))
    logits.copy_(grad.mul_(grad_scale))
    return losses
