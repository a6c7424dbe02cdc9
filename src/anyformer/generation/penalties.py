"""What a user's sampling settings add to the scores: penalties on what was said, and biases."""

import torch
from jaxtyping import Float
from torch import Tensor

from anyformer.errors import UserError
from anyformer.generation.rules import History, Rule, discourage_repetition
from anyformer.generation.sampling import Sampling


def penalties_of(sampling: Sampling, vocab_size: int) -> list[Rule]:
    """The rules that these settings ask for.

    Raises:
        UserError: a bias on a token that there is not.
    """
    rules: list[Rule] = []
    if sampling.repetition_penalty != 1.0:
        rules.append(discourage_repetition(sampling.repetition_penalty))
    if sampling.presence_penalty or sampling.frequency_penalty:
        rules.append(discourage_said(sampling.presence_penalty, sampling.frequency_penalty))
    if sampling.logit_bias:
        for token in sampling.logit_bias:
            if not 0 <= token < vocab_size:
                raise UserError(f"logit_bias names token {token}, and the vocabulary has {vocab_size}.")
        rules.append(add_bias(list(sampling.logit_bias), list(sampling.logit_bias.values())))
    return rules


def discourage_said(presence: float, frequency: float) -> Rule:
    """``score - count * frequency - (count > 0) * presence``, counting the new tokens (OpenAI's documentation)."""

    def rule(scores: Float[Tensor, "batch vocab"], history: History) -> Tensor:
        if history.new == 0:
            return scores
        said = history.ids[:, -history.new :]
        counts = torch.zeros_like(scores).scatter_add_(1, said, torch.ones_like(said, dtype=scores.dtype))
        return scores - counts * frequency - (counts > 0) * presence

    return rule


def add_bias(tokens: list[int], biases: list[float]) -> Rule:
    """Add to the scores of these tokens."""

    def rule(scores: Float[Tensor, "batch vocab"], history: History) -> Tensor:
        changed = scores.clone()
        changed[:, tokens] += torch.tensor(biases, device=scores.device)
        return changed

    return rule
