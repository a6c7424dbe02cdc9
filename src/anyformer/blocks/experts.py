"""The mixture of experts: a feed-forward block of several networks, some of which compute each token."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from typing_extensions import override

from anyformer import kernels
from anyformer.blocks.feed_forward import FeedForward
from anyformer.blocks.linear import Linear
from anyformer.config import FeedForwardConfig


class Routing(NamedTuple):
    """The choices of a router."""

    probabilities: Float[Tensor, "tokens experts"]
    chosen: Int[Tensor, "tokens used"]


class Experts(FeedForward):
    """``sum_e w_e network_e(x)`` over the experts with the largest ``p = softmax(router(x))`` (Shazeer et al. 2017).

    The weights w are those p, or p divided by their sum (`ExpertsConfig.normalized`; Jiang et al. 2024, section 2.1):
    the softmax over the logits of the chosen experts. Each network is a `FeedForward`; the matrices of all lie one
    below another. Only the chosen ones are computed: tokens are sorted by expert.

    Attributes:
        routing: The latest choices in training, for `balance_loss`.
    """

    routing: Routing | None = None

    def __init__(self, config: FeedForwardConfig, d_model: int) -> None:
        super().__init__(config, d_model)
        assert config.experts is not None
        self.count, self.used, self.normalized = config.experts.count, config.experts.used, config.experts.normalized
        self.balance = config.experts.balance
        self.router = Linear(d_model, self.count, bias=False)

    @override
    def forward(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        tokens = x.flatten(0, -2)
        probabilities = kernels.in_float32(self.router(tokens)).softmax(dim=-1)
        weights, chosen = probabilities.topk(self.used, dim=-1)
        if self.normalized:
            weights = weights / weights.sum(dim=-1, keepdim=True)
        if self.balance and self.training and torch.is_grad_enabled():
            self.routing = Routing(probabilities, chosen)
        groups = kernels.sort_by_group(chosen.flatten(), self.count)
        outputs = kernels.scatter_groups(self.network(kernels.gather_groups(tokens, groups), groups.ends), groups)
        return (weights[..., None] * outputs.unflatten(0, weights.shape)).sum(dim=1).to(outputs.dtype).view_as(x)


def balance_loss(routings: Sequence[Routing], real: Bool[Tensor, "batch time"] | None = None) -> Float[Tensor, ""]:
    """``count * sum_e f_e P_e`` (Fedus et al. 2021, equations 4 to 6): least where experts are chosen equally often.

    f_e is how often expert e is chosen for a token, P_e the mean of its probability, both over the tokens of all layers
    together (Hugging Face's `load_balancing_loss_func`).

    Args:
        routings: Of each layer.
        real: False for padding. It makes no difference where padding is left out of what is computed.
    """
    chosen_sum, probability_sum, tokens = 0, 0, 0
    for probabilities, chosen in routings:
        is_dense = real is not None and len(probabilities) == real.numel()
        weights = real.flatten().to(probabilities) if is_dense else torch.ones_like(probabilities[:, 0])
        each = weights.repeat_interleave(chosen.shape[1])
        chosen_sum = probabilities.new_zeros(probabilities.shape[1]).index_add(0, chosen.flatten(), each) + chosen_sum
        probability_sum = weights @ probabilities + probability_sum
        tokens = weights.sum() + tokens
    return len(chosen_sum) * (chosen_sum / tokens) @ (probability_sum / tokens)
