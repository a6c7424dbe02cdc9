"""The mixture of experts: a feed-forward block of several networks, some of which compute each token."""

from collections.abc import Sequence
from dataclasses import replace
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
    """``sum_e w_e network_e(x)`` over the experts with the largest ``p = softmax(router(x))`` (Shazeer et al. 2017), or
    ``p = sigmoid(router(x))``.

    The weights w are those p, or p divided by their sum (`ExpertsConfig.normalized`; Jiang et al. 2024, section 2.1):
    the softmax over the logits of the chosen experts. Experts may be chosen from the best groups alone, by p and a
    correction, and beside others that compute every token (DeepSeek-AI 2024, 2412.19437, section 2.1.2). Each network
    is a `FeedForward`; the matrices of all lie one below another. Only the chosen ones are computed: tokens are sorted
    by expert.

    Attributes:
        routing: The latest choices in training, for `balance_loss`.
    """

    routing: Routing | None = None
    correction: Tensor | None

    def __init__(self, config: FeedForwardConfig, d_model: int) -> None:
        super().__init__(config, d_model)
        assert config.experts is not None
        self.config = experts = config.experts
        self.count, self.used, self.balance = experts.count, experts.used, experts.balance
        self.router = Linear(d_model, self.count, bias=experts.router_bias)
        self.register_buffer("correction", torch.zeros(self.count) if experts.correction else None)
        self.shared = None
        if experts.shared:
            self.shared = FeedForward(replace(config, width=experts.shared * config.width, experts=None), d_model)

    @override
    def forward(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        tokens = x.flatten(0, -2)
        logits = kernels.in_float32(self.router(tokens))
        probabilities = logits.softmax(dim=-1) if self.config.scores == "softmax" else logits.sigmoid()
        chosen = self._choose(probabilities)
        weights = probabilities.gather(1, chosen)
        if self.config.normalized:
            weights = weights / weights.sum(dim=-1, keepdim=True)
        weights = weights if self.config.scale == 1.0 else weights * self.config.scale
        if self.balance and self.training and torch.is_grad_enabled():
            self.routing = Routing(probabilities, chosen)
        groups = kernels.sort_by_group(chosen.flatten(), self.count)
        outputs = kernels.scatter_groups(self.network(kernels.gather_groups(tokens, groups), groups.ends), groups)
        out = (weights[..., None] * outputs.unflatten(0, weights.shape)).sum(dim=1).to(outputs.dtype).view_as(x)
        return out if self.shared is None else out + self.shared(x)

    def _choose(self, probabilities: Float[Tensor, "tokens experts"]) -> Int[Tensor, "tokens used"]:
        """The experts of each token: the best of the best groups."""
        scores = probabilities if self.correction is None else probabilities + self.correction
        groups, used_groups = self.config.groups, self.config.used_groups
        if used_groups < groups:
            grouped = scores.unflatten(1, (groups, -1))
            best = grouped.topk(self.config.group_best, dim=-1).values.sum(dim=-1).topk(used_groups, dim=-1).indices
            left_out = torch.ones_like(grouped[..., 0], dtype=torch.bool).scatter(1, best, False)
            scores = grouped.masked_fill(left_out[..., None], -torch.inf).flatten(1)
        return scores.topk(self.used, dim=-1).indices


def balance_loss(routings: Sequence[Routing], real: Bool[Tensor, "batch time"] | None = None) -> Float[Tensor, ""]:
    """``count * sum_e f_e P_e`` (Fedus et al. 2021, equations 4 to 6): least where experts are chosen equally often.

    f_e is how often expert e is chosen for a token, P_e the mean of its probability, both over the tokens of all layers
    together (Hugging Face's `load_balancing_loss_func`).

    Args:
        real: False for padding. It makes no difference where padding is left out of what is computed.
    """
    chosen_sum = probability_sum = torch.zeros_like(routings[0].probabilities[0])
    tokens = torch.zeros_like(chosen_sum[0])
    for probabilities, chosen in routings:
        weights = torch.ones_like(probabilities[:, 0])
        if real is not None and len(probabilities) == real.numel():
            weights = real.flatten().to(probabilities)
        each = weights.repeat_interleave(chosen.shape[1])
        chosen_sum = chosen_sum.index_add(0, chosen.flatten(), each)
        probability_sum = probability_sum + (weights[:, None] * probabilities).sum(dim=0)
        tokens = tokens + weights.sum()
    return len(chosen_sum) * ((chosen_sum / tokens) * (probability_sum / tokens)).sum()
