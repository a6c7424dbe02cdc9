"""From hidden states to answers."""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, Num
from torch import Tensor, nn

from anyformer.blocks.block import norm
from anyformer.blocks.dropout import Dropout
from anyformer.blocks.feed_forward import activation
from anyformer.blocks.quantized import QuantizedLinear, QuantizedMatrix, linear
from anyformer.config import HeadConfig, NormConfig
from anyformer.kernels.cross_entropy import vocabulary_loss

_ROWS = 32
"""The tokens that count are made up to a multiple of it: so products have few shapes. Torch's library for them keeps
megabytes of code for every shape that it met (docs/measurements/training.md)."""


class LanguageModelHead(nn.Module):
    """Logits over the vocabulary: ``scale * transform(x) @ matrix.T + bias``.

    Args:
        config: The transform, scale and bias.
        norm_config: The norm that ends the transform.
        d_model: Width of the hidden states.
        vocab_size: Number of tokens.
        tied: Use the token table, given at each call, as the matrix (Press & Wolf 2017).
    """

    def __init__(
        self, config: HeadConfig, norm_config: NormConfig, d_model: int, vocab_size: int, *, tied: bool
    ) -> None:
        super().__init__()
        self.scale = d_model**-0.5 if config.scaled else 1.0
        self.rounds = False
        self.transform = Transform(config.transform, norm_config, d_model) if config.transform else None
        self.projection: nn.Linear | QuantizedLinear | None = (
            None if tied else nn.Linear(d_model, vocab_size, bias=False)
        )
        bias = torch.zeros(vocab_size)
        if config.bias == "learned":
            self.bias: Tensor | None = nn.Parameter(bias)
        elif config.bias == "fixed":
            self.register_buffer("bias", bias)
        else:
            self.bias = None

    def forward(
        self,
        x: Float[Tensor, "*batch d_model"],
        table: Float[Tensor, "vocab d_model"] | QuantizedMatrix | None = None,
    ) -> Float[Tensor, "*batch vocab"]:
        """Score every token of the vocabulary; `table` is the token table of a tied head."""
        return linear(self._transformed(x), self._matrix(table), self.bias)

    def loss(
        self,
        x: Float[Tensor, "*batch d_model"],
        targets: Int[Tensor, "*batch"],
        table: Float[Tensor, "vocab d_model"] | QuantizedMatrix | None = None,
        *,
        label_smoothing: float = 0.0,
    ) -> Float[Tensor, ""]:
        """The same as `loss` of the logits, without making them all at once, nor any for targets that are ignored."""
        x, targets = x.flatten(0, -2), targets.flatten()
        counts = targets != IGNORED
        if not counts.all():
            which = counts.nonzero().squeeze(1)
            targets = targets[which]
            x = x[F.pad(which, (0, -len(which) % _ROWS), value=int(which[-1]) if len(which) else 0)]
        matrix = self._matrix(table)
        if isinstance(matrix, QuantizedMatrix):
            matrix = matrix.dequantized(x.dtype)
        rounds = self.rounds and self.training
        return vocabulary_loss(self._transformed(x), matrix, self.bias, targets, label_smoothing, rounds=rounds)

    def _transformed(self, x: Tensor) -> Tensor:
        if self.transform is not None:
            x = self.transform(x)
        return x * self.scale if self.scale != 1.0 else x

    def _matrix(self, table: Tensor | QuantizedMatrix | None) -> Tensor | QuantizedMatrix:
        own = self.projection
        matrix = table if own is None else own.weight if isinstance(own, nn.Linear) else own
        if matrix is None:
            raise ValueError("a tied head needs the token table")
        return matrix


class Transform(nn.Module):
    """``norm(act(dense(x)))``: the last step before BERT's masked-word logits (its code, get_masked_lm_output)."""

    def __init__(self, name: str, norm_config: NormConfig, d_model: int) -> None:
        super().__init__()
        self.dense = nn.Linear(d_model, d_model)
        self.activation = activation(name, "head.transform")
        self.norm = norm(norm_config, d_model)

    def forward(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        """Transform each vector by itself."""
        return self.norm(self.activation(self.dense(x)))


class Pooler(nn.Module):
    """``act(dense(first token))``: one vector for the whole text (Devlin et al. 2019, section 3)."""

    def __init__(self, name: str, d_model: int) -> None:
        super().__init__()
        self.dense = nn.Linear(d_model, d_model)
        self.activation = activation(name, "head.pooler")

    def forward(
        self, x: Float[Tensor, "batch time d_model"], mask: Bool[Tensor, "batch time"] | None = None
    ) -> Float[Tensor, "batch d_model"]:
        """Pool each text; the mask says where it begins, if some have padding before them."""
        begins = 0 if mask is None else mask.int().argmax(dim=1)
        first = x[torch.arange(len(x), device=x.device), begins]
        return self.activation(self.dense(first))


class Classifier(nn.Module):
    """Logits over labels: of a pooled text, or of every token."""

    def __init__(self, config: HeadConfig, d_model: int) -> None:
        super().__init__()
        self.dropout = Dropout(config.dropout)
        self.labels = nn.Linear(d_model, config.labels)

    def forward(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch labels"]:
        """Score every label."""
        return self.labels(self.dropout(x))


IGNORED = -100
"""Targets of this value count for nothing."""


def loss(
    logits: Float[Tensor, "*batch classes"], targets: Num[Tensor, "*batch"], label_smoothing: float = 0.0
) -> Float[Tensor, ""]:
    """Mean cross-entropy in nats over the targets that are not -100; mean squared error if there is one class."""
    logits = logits.float().flatten(0, -2)
    if logits.shape[-1] == 1:
        return F.mse_loss(logits[:, 0], targets.flatten().float())
    return F.cross_entropy(logits, targets.flatten(), ignore_index=IGNORED, label_smoothing=label_smoothing)
