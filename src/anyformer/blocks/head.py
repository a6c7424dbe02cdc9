"""From hidden states to logits."""

from functools import partial

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, Num
from torch import Tensor, nn

from anyformer import kernels
from anyformer.blocks.feed_forward import ACTIVATIONS
from anyformer.blocks.linear import Dropout, Linear, linear
from anyformer.blocks.norm import norm
from anyformer.blocks.pooling import POOLINGS, TOKENS
from anyformer.blocks.quantized import QuantizedMatrix
from anyformer.config import HeadConfig, NormConfig, ProblemType
from anyformer.kernels.cross_entropy import IGNORED
from anyformer.schema import lookup

_MAX_LOGITS = 1 << 25
"""Logits that exist at a time: 128 MB in float32."""


class LanguageModelHead(nn.Module):
    """Logits over the vocabulary: ``scale * transform(x) @ weight.T + bias``, bounded by a softcap where there is one.

    A tied head's weight is that of the token embedding, given at each call (Press & Wolf 2017).

    Args:
        width: Of the token embedding, which a transform makes its vectors as wide as; None: d_model.
    """

    matmul: kernels.Matmul = "float"
    """As of `Linear`."""

    def __init__(
        self,
        config: HeadConfig,
        norm_config: NormConfig,
        d_model: int,
        vocab_size: int,
        *,
        tied: bool,
        width: int | None = None,
    ) -> None:
        super().__init__()
        width = width or d_model
        self.scale = config.scale * (d_model**-0.5 if config.scaled else 1.0)
        self.softcap = config.softcap
        self.transform = Transform(config, norm_config, d_model, width) if config.transform else None
        inputs = d_model if self.transform is None else width
        self.projection = None if tied else Linear(inputs, vocab_size, bias=False)
        bias = torch.zeros(vocab_size)
        if config.bias == "learned":
            self.bias: Tensor | None = nn.Parameter(bias)
        else:
            self.register_buffer("bias", bias if config.bias == "fixed" else None)

    def forward(
        self,
        x: Float[Tensor, "*batch d_model"],
        tied_weight: Float[Tensor, "vocab width"] | QuantizedMatrix | None = None,
    ) -> Float[Tensor, "*batch vocab"]:
        """Score every token of the vocabulary; a tied head gets the weight of the token embedding."""
        return self._logits(x, self._weight(tied_weight))

    def _logits(self, x: Tensor, weight: Tensor | QuantizedMatrix) -> Tensor:
        x = self._transform(x)
        out = linear(x, weight, self.bias)
        out = out if self.projection is None else self.projection.adapted(x, out, weight, self.bias)
        return out if self.softcap is None else self.softcap * torch.tanh(out / self.softcap)

    def loss(
        self,
        x: Float[Tensor, "*batch d_model"],
        targets: Int[Tensor, "*batch"],
        tied_weight: Float[Tensor, "vocab width"] | QuantizedMatrix | None = None,
        *,
        label_smoothing: float = 0.0,
    ) -> Float[Tensor, ""]:
        """`loss` of the logits, without ever holding all of them (see `kernels.linear_cross_entropy`)."""
        x, targets = kernels.drop_ignored(x.flatten(0, -2), targets.flatten())
        weight = self._weight(tied_weight)
        if self.softcap is not None or (self.projection is not None and self.projection.adapters is not None):
            # Rows without a target follow those that have one (see `kernels.drop_ignored`).
            losses = self.token_losses(x[: len(targets)], targets, tied_weight, label_smoothing=label_smoothing)
            return losses.sum() / (targets != IGNORED).sum().clamp(min=1)
        return self.cross_entropy(self._transform(x), weight, targets, label_smoothing)

    def cross_entropy(
        self,
        x: Float[Tensor, "rows width"],
        weight: Float[Tensor, "vocab width"] | QuantizedMatrix,
        targets: Int[Tensor, " tokens"],
        label_smoothing: float,
    ) -> Float[Tensor, ""]:
        """The mean loss of transformed vectors, whose logits are ``x @ weight.T + bias``."""
        if isinstance(weight, QuantizedMatrix):
            packed_weight, transposed = weight.packed_weight, weight.transposed
            return kernels.quantized_linear_cross_entropy(
                x, packed_weight, targets, bias=self.bias, transposed=transposed, label_smoothing=label_smoothing
            )
        matmul = self.matmul if self.training else "float"
        return kernels.linear_cross_entropy(
            x, weight, targets, linear_bias=self.bias, label_smoothing=label_smoothing, matmul=matmul
        )

    def token_losses(
        self,
        x: Float[Tensor, "tokens d_model"],
        targets: Int[Tensor, " tokens"],
        tied_weight: Float[Tensor, "vocab width"] | QuantizedMatrix | None = None,
        *,
        label_smoothing: float = 0.0,
    ) -> Float[Tensor, " tokens"]:
        """The cross-entropy of each token in nats: ``-log p(target)`` without smoothing; 0 where it is ignored."""

        weight = self._weight(tied_weight)
        score = partial(self, tied_weight=tied_weight)
        if isinstance(weight, QuantizedMatrix):  # whole once: processes that share it may differ in the number of parts
            score = partial(self._logits, weight=weight.whole())

        def losses(x: Tensor, targets: Tensor) -> Tensor:
            logits = score(x).float()
            return F.cross_entropy(
                logits, targets, ignore_index=IGNORED, label_smoothing=label_smoothing, reduction="none"
            )

        return kernels.in_parts(losses, x, targets, size=max(1, _MAX_LOGITS // weight.shape[0]))

    def _transform(self, x: Tensor) -> Tensor:
        if self.transform is not None:
            x = self.transform(x)
        return x * self.scale if self.scale != 1.0 else x

    def _weight(self, tied_weight: Tensor | QuantizedMatrix | None) -> Tensor | QuantizedMatrix:
        weight = tied_weight if self.projection is None else self.projection.weight
        if weight is None:
            raise ValueError("a tied head needs the weight of the token embedding")
        return weight


class Transform(nn.Module):
    """``norm(act(dense(x)))``: the last step before BERT's masked-token logits (its code, get_masked_lm_output).

    Without the norm it is that of ELECTRA's discriminator (Clark et al. 2020; its code, _get_discriminator_output).
    """

    def __init__(self, config: HeadConfig, norm_config: NormConfig, d_model: int, width: int) -> None:
        super().__init__()
        self.dense = Linear(d_model, width, bias=config.transform_bias)
        self.activation = lookup(ACTIVATIONS, config.transform or "", "head.transform")
        self.norm = norm(norm_config, width) if config.transform_norm else nn.Identity()

    def forward(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch width"]:
        """Transform each vector by itself."""
        return self.norm(self.activation(self.dense(x)))


class Pooler(nn.Module):
    """One vector for the whole sequence: of its first or last token, or the mean of all, and ``act(dense(x))`` of it
    where the config says so.

    BERT takes the first (Devlin et al. 2019, section 3), a decoder the last (Radford et al. 2018, section 3.2), and
    BART the last of its decoder, which reads the text as well (Lewis et al. 2020, section 3.2).
    """

    def __init__(self, config: HeadConfig, d_model: int) -> None:
        super().__init__()
        self.pool, self.token = POOLINGS[config.pooling], TOKENS.get(config.pooling)
        self.dense = Linear(d_model, d_model) if config.pooler else None
        self.activation = lookup(ACTIVATIONS, config.pooler, "head.pooler") if config.pooler else None

    def forward(
        self, x: Float[Tensor, "batch time d_model"], mask: Bool[Tensor, "batch time"] | None = None
    ) -> Float[Tensor, "batch d_model"]:
        """Pool each sequence; the mask says where it begins and ends, if some have padding."""
        x = self.pool(x, mask)
        return x if self.dense is None or self.activation is None else self.activation(self.dense(x))


class Classifier(nn.Module):
    """Logits over labels: of a pooled sequence, or of every token."""

    def __init__(self, config: HeadConfig, norm_config: NormConfig, d_model: int) -> None:
        super().__init__()
        has_transform = config.transform is not None
        self.transform = Transform(config, norm_config, d_model, d_model) if has_transform else nn.Identity()
        self.dropout = Dropout(config.dropout)
        self.labels = Linear(d_model, config.labels, bias=config.label_bias)

    def forward(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch labels"]:
        """Score every label."""
        return self.labels(self.dropout(self.transform(x)))


def loss(
    logits: Float[Tensor, "*batch classes"],
    targets: Num[Tensor, "*batch"] | Num[Tensor, "*batch classes"],
    label_smoothing: float = 0.0,
    problem_type: ProblemType | None = None,
) -> Float[Tensor, ""]:
    """The mean loss over all targets that are not -100; 0, and gradients of 0, where all are.

    ============================ ======================================================== ===================
    problem                      loss                                                     targets
    ============================ ======================================================== ===================
    single_label_classification  cross-entropy in nats                                    [*batch] classes
    multi_label_classification   binary cross-entropy of each label in nats               [*batch, classes]
    regression                   squared error                                            [*batch], or as above
    ============================ ======================================================== ===================

    Args:
        label_smoothing: Share of the target that is spread over the classes; of a single label only.
        problem_type: Which of them; None: a regression if there is one class, several labels if the targets are no
            integers.
    """
    logits = logits.float()
    if problem_type is None and logits.shape[-1] > 1:
        problem_type = "multi_label_classification" if targets.is_floating_point() else "single_label_classification"
    kept = targets != IGNORED
    if problem_type == "single_label_classification":
        logits, targets = logits.flatten(0, -2), targets.flatten()
        mean = F.cross_entropy(logits, targets, ignore_index=IGNORED, label_smoothing=label_smoothing)
        return mean.where(kept.any(), 0.0)
    difference = F.binary_cross_entropy_with_logits if problem_type == "multi_label_classification" else F.mse_loss
    losses = difference(logits.view_as(targets), targets.float(), reduction="none")
    return losses.where(kept, 0.0).sum() / kept.sum().clamp(min=1)
