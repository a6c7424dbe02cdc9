"""Losses: modules around the model, whose output is the mean loss of a batch."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, Num
from torch import Tensor, nn
from typing_extensions import override

from anyformer import kernels
from anyformer.blocks.head import IGNORED, LanguageModelHead
from anyformer.blocks.linear import Dropout
from anyformer.errors import UserError, nearest, quote
from anyformer.kernels.autocast import autocast_disabled
from anyformer.model import Transformer


class LossModule(nn.Module):
    """A model whose only output is its loss, for engines that watch outputs to see what has a part in them.

    `forward` takes the fields of a `Batch` as tensors, `return_logits`, which is False since no loss returns them, and
    `label_smoothing`, the share of each target that is spread over the other answers.

    Attributes:
        compares_examples: whether the loss of an example depends on the others of its batch, so that a part of a batch
            has to know the `WholeBatch`.
    """

    compares_examples = False

    def __init__(self, model: Transformer) -> None:
        super().__init__()
        self.model = model

    @override
    def forward(self, **inputs: Any) -> Float[Tensor, ""]:
        # Not model(...): DeepSpeed watches the outputs of every module that is called, and can't look into this one's.
        loss = self.model.forward(**inputs, pooled_only=True).loss
        if loss is None:
            raise ValueError("a loss needs targets")
        return loss


class ClassWeightedLoss(LossModule):
    """The cross-entropy of one class for each text, in training times the weight of its class.

    The sum of the weighted losses is divided by the number of texts, so that the parts of a batch add up to it.

    Args:
        weights: Of each class.
    """

    def __init__(self, model: Transformer, weights: Sequence[float]) -> None:
        super().__init__(model)
        self.weights = torch.tensor(weights)

    @override
    def forward(self, *, targets: Int[Tensor, " texts"], label_smoothing: float = 0.0, **inputs: Any) -> Tensor:
        if not self.model.training:
            return super().forward(targets=targets, label_smoothing=label_smoothing, **inputs)
        inputs["return_logits"] = True
        logits = self.model.forward(**inputs, pooled_only=True).logits
        assert logits is not None
        losses = F.cross_entropy(logits.float(), targets, reduction="none", label_smoothing=label_smoothing)
        return (losses * self.weights.to(losses.device)[targets]).mean()


class PreferenceLoss(LossModule):
    """Direct preference optimization (Rafailov et al. 2023, equation 7), for a `PreferenceBatch`::

        -log sigmoid(beta * (log p(chosen) / ref(chosen) - log p(rejected) / ref(rejected)))

    It is ln 2 where the model is the reference. With label smoothing s, the assumed share of swapped pairs, it is
    ``1 - s`` times that and s times that of the swapped pair (Mitchell 2023, cDPO). The model gets no dropout: the
    reference has none, and the two are compared.

    Args:
        beta: The larger, the nearer the model stays to the reference.
    """

    def __init__(self, model: Transformer, beta: float = 0.1) -> None:
        super().__init__(model)
        self.beta = beta
        for part in model.modules():
            if isinstance(part, Dropout):
                part.p = 0.0

    @override
    def forward(
        self,
        *,
        reference: Float[Tensor, " rows"],
        return_logits: bool = False,
        return_log_probabilities: bool = False,
        label_smoothing: float = 0.0,
        **inputs: Any,
    ) -> Float[Tensor, ""] | Float[Tensor, " rows"]:
        log_probabilities = answer_log_probabilities(self.model, **inputs)
        if return_log_probabilities:
            return log_probabilities
        ratios = log_probabilities - reference
        margin = self.beta * (ratios[0::2] - ratios[1::2])
        return -((1 - label_smoothing) * F.logsigmoid(margin) + label_smoothing * F.logsigmoid(-margin)).mean()


def answer_log_probabilities(
    model: Transformer,
    tokens: Int[Tensor, "rows time"],
    targets: Int[Tensor, "rows time"],
    mask: Bool[Tensor, "rows time"] | None = None,
    **inputs: Any,
) -> Float[Tensor, " rows"]:
    """The log-probability of each row's targets together, in nats; those of -100 count for nothing.

    Logits are computed for tokens with a target only, some tokens at a time, and in the backward pass once more.

    Args:
        inputs: Other arguments of `Transformer.forward`, such as the source of an encoder-decoder.
    """
    head, weight = model.head, model.token_embedding.weight
    if not isinstance(head, LanguageModelHead):
        raise ValueError("only a language model has probabilities of tokens")
    kept = targets != IGNORED
    hidden = model.forward(tokens, mask=mask, return_logits=False, needed=kept, **inputs).hidden
    rows, answers = kernels.drop_ignored(hidden.flatten(0, 1), targets.flatten())
    losses = head.token_losses(rows[: len(answers)], answers, weight)
    if len(answers) < kept.numel():
        losses = torch.zeros(kept.shape, device=hidden.device).masked_scatter(kept, losses)
    return -losses.view(kept.shape).sum(dim=1)


Vectors = Float[Tensor, "examples texts d_model"]

PAIR_CLASSIFIER = "pair_classifier"
"""The linear layer of a model that learns vectors by the classes of pairs; it isn't saved."""


@dataclass(frozen=True, slots=True)
class WholeBatch:
    """Embeddings of a whole batch that is computed in parts, for losses that compare each example with all others.

    Attributes:
        vectors: [examples, texts, d_model] of all examples, without gradient.
        targets: [examples] of all examples.
    """

    vectors: Tensor
    targets: Tensor


class EmbeddingLoss(LossModule):
    """A loss of the vectors that `anyformer.embed` computes for texts, for an `EmbeddingBatch`.

    ================== =========================== ============================== ======================================
    kind               texts of an example         targets                        loss
    ================== =========================== ============================== ======================================
    in_batch_negatives anchor, positive, negatives any                            `in_batch_negatives`
    cosine             pair                        similarity, in [-1, 1]         `cosine_error`
    triplet            anchor, positive, negative  any                            `triplet`
    class_triplet      one                         class                          `class_triplet`
    softmax            pair                        class                          `pair_class`
    ================== =========================== ============================== ======================================

    Label smoothing has a meaning for in_batch_negatives and softmax alone. in_batch_negatives and class_triplet compare
    each example with all others: a part of a batch has the gradient of the batch's loss where it is given the vectors
    of the `WholeBatch`, into which its own are put (GradCache; Gao et al. 2021, section 3.2).

    Args:
        model: Any model; of an encoder-decoder the encoder is used. For softmax it has the module `PAIR_CLASSIFIER`.
        kind: One of these names.
        scale: Factor of the cosines, the inverse of a temperature; in_batch_negatives.
        margin: Distance by which negatives should be farther away than positives; triplet, class_triplet.

    Raises:
        UserError: an unknown kind.
    """

    def __init__(self, model: Transformer, kind: str, scale: float = 20.0, margin: float = 5.0) -> None:
        super().__init__(model)
        if kind not in EMBEDDING_LOSSES:
            raise UserError(f"There is no embedding loss {quote(kind)} ({nearest(kind, EMBEDDING_LOSSES)}).")
        self.kind, self.scale, self.margin = kind, scale, margin
        self.compares_examples = kind in ("in_batch_negatives", "class_triplet")

    @override
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        *,
        tokens: Int[Tensor, "rows time"],
        targets: Num[Tensor, " examples"],
        mask: Bool[Tensor, "rows time"] | None = None,
        slots: Int[Tensor, " examples"] | None = None,
        whole: WholeBatch | None = None,
        return_vectors: bool = False,
        return_logits: bool = False,
        label_smoothing: float = 0.0,
    ) -> Float[Tensor, ""] | Vectors:
        rows = self.model.embed_text(tokens, mask)
        vectors = rows.unflatten(0, (len(targets), -1))
        if return_vectors:
            return vectors
        if whole is not None and slots is not None:
            vectors, targets = whole.vectors.index_copy(0, slots, vectors), whole.targets
        with autocast_disabled(vectors):
            return EMBEDDING_LOSSES[self.kind](self, vectors, targets, label_smoothing)


def in_batch_negatives(vectors: Vectors, scale: float = 20.0, label_smoothing: float = 0.0) -> Float[Tensor, ""]:
    """Cross-entropy of finding each anchor's positive among all texts of the batch but anchors, by ``scale * cosine``.

    Henderson et al. 2017, section 4.4; `MultipleNegativesRankingLoss` of sentence-transformers. The first text of an
    example is the anchor, the second its positive; others are harder negatives.
    """
    vectors = F.normalize(vectors, dim=-1)
    candidates = vectors[:, 1:].transpose(0, 1).flatten(0, 1)
    scores = scale * vectors[:, 0] @ candidates.t()
    return F.cross_entropy(scores, torch.arange(len(scores), device=scores.device), label_smoothing=label_smoothing)


def cosine_error(vectors: Vectors, scores: Num[Tensor, " examples"]) -> Float[Tensor, ""]:
    """Mean squared error of the cosine of each pair (Reimers & Gurevych 2019, section 3, regression objective)."""
    first, second = vectors.unbind(dim=1)
    return F.mse_loss(F.cosine_similarity(first, second), scores.float())


def triplet(vectors: Vectors, margin: float = 5.0) -> Float[Tensor, ""]:
    """``max(|anchor - positive| - |anchor - negative| + margin, 0)`` (Reimers & Gurevych 2019, section 3)."""
    anchor, positive, negative = vectors.unbind(dim=1)
    return F.relu(_distance(anchor, positive) - _distance(anchor, negative) + margin).mean()


def class_triplet(vectors: Vectors, classes: Num[Tensor, " examples"], margin: float = 5.0) -> Float[Tensor, ""]:
    """The mean over all triplets of a batch, two texts of a class and one of another, whose `triplet` loss isn't 0.

    Hermans et al. 2017, "batch all"; `BatchAllTripletLoss` of sentence-transformers.
    """
    (texts,) = vectors.unbind(dim=1)
    # Not by products of the vectors, which lose all digits of a small distance.
    distances = torch.cdist(texts, texts, compute_mode="donot_use_mm_for_euclid_dist")
    same = classes[:, None] == classes
    positive = same & ~torch.eye(len(classes), dtype=torch.bool, device=same.device)
    # [anchors, positives, negatives]: to pick the pairs of a class, an accelerator would wait for their number.
    losses = F.relu(distances[:, :, None] - distances[:, None] + margin)
    losses = losses * (positive[:, :, None] & ~same[:, None])
    return losses.sum() / (losses > 0).sum().clamp(min=1)


def pair_class(
    vectors: Vectors, classes: Num[Tensor, " examples"], classifier: nn.Module, label_smoothing: float = 0.0
) -> Float[Tensor, ""]:
    """Cross-entropy of the class of each pair u, v, as a linear layer reads it off ``[u, v, |u - v|]``.

    Reimers & Gurevych 2019, section 3, classification objective; `SoftmaxLoss` of sentence-transformers.
    """
    first, second = vectors.unbind(dim=1)
    logits = classifier(torch.cat((first, second, (first - second).abs()), dim=-1))
    return F.cross_entropy(logits, classes.long(), label_smoothing=label_smoothing)


def _distance(a: Float[Tensor, "*batch d_model"], b: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch"]:
    """The Euclidean distance, whose gradient is 0 where it is 0: texts may be alike."""
    return torch.linalg.vector_norm(a - b, dim=-1)


EMBEDDING_LOSSES: dict[str, Callable[[EmbeddingLoss, Tensor, Tensor, float], Tensor]] = {
    "in_batch_negatives": lambda of, vectors, targets, smoothing: in_batch_negatives(vectors, of.scale, smoothing),
    "cosine": lambda of, vectors, targets, smoothing: cosine_error(vectors, targets),
    "triplet": lambda of, vectors, targets, smoothing: triplet(vectors, of.margin),
    "class_triplet": lambda of, vectors, targets, smoothing: class_triplet(vectors, targets, of.margin),
    "softmax": lambda of, vectors, targets, smoothing: pair_class(
        vectors, targets, of.model.get_submodule(PAIR_CLASSIFIER), smoothing
    ),
}
"""The loss of vectors [examples, texts, d_model], of targets [examples] and of label smoothing, by kind."""
