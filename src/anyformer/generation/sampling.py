"""Sampling: from logits to the next token, greedily, or drawn from what temperature, top-k, top-p and min-p leave.

The filters are those of Hugging Face's sampling, in its order (temperature, top-k, top-p, min-p) and with its treatment
of ties, so the same settings leave the same tokens.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from anyformer.generation.config import GenerationConfig


@dataclass(frozen=True)
class Sampler:
    """Draws the next token by its logits."""

    config: GenerationConfig
    generator: torch.Generator | None = None
    """None: torch's global one."""

    @property
    def greedy(self) -> bool:
        """Whether nothing is drawn: the likeliest token is next, of equals the one with the lowest id."""
        return self.config.temperature == 0.0

    def filter(self, logits: Float[Tensor, "batch vocab"]) -> Float[Tensor, "batch vocab"]:
        """The logits that are sampled from: -inf for every token that can't be."""
        config = self.config
        if config.temperature != 1.0:
            logits = logits / config.temperature
        if config.top_k is not None:
            logits = keep_top_k(logits, config.top_k)
        if config.top_p is not None:
            logits = keep_top_p(logits, config.top_p)
        if config.min_p is not None:
            logits = keep_min_p(logits, config.min_p)
        return logits

    def __call__(self, logits: Float[Tensor, "batch vocab"]) -> Int[Tensor, " batch"]:
        """The next token of each text."""
        return draw(self.filter(logits), self.generator)


def make_sampler(config: GenerationConfig, device: torch.device) -> Sampler:
    """A sampler with a generator of its own where the config has a seed."""
    generator = None if config.seed is None else torch.Generator(device=device).manual_seed(config.seed)
    return Sampler(config, generator)


def keep_top_k(logits: Float[Tensor, "batch vocab"], k: int) -> Float[Tensor, "batch vocab"]:
    """Hide all but the k largest; whatever equals the k-th stays too."""
    smallest = logits.topk(min(k, logits.shape[-1]), dim=-1).values[:, -1:]
    return logits.masked_fill(logits < smallest, -torch.inf)


def keep_top_p(logits: Float[Tensor, "batch vocab"], p: float) -> Float[Tensor, "batch vocab"]:
    """Hide the unlikeliest tokens, as many as have at most 1 - p of the probability together; the likeliest
    stays."""
    if p >= 1.0:
        return logits
    few = _by_the_likeliest(logits, p)
    if few is not None:
        return few
    ascending, order = logits.sort(dim=-1)
    hidden = ascending.softmax(dim=-1).cumsum(dim=-1) <= 1 - p
    hidden[:, -1] = False
    return logits.masked_fill(hidden.scatter(-1, order, hidden), -torch.inf)


_FEW = 256
_MARGIN = 1e-5


def _by_the_likeliest(logits: Tensor, p: float) -> Tensor | None:
    """Nucleus without sorting a large vocabulary, where a few tokens have most of the probability; None elsewhere.

    Where equally likely tokens stand at the border, or rounding might decide, it is left to sorting.
    """
    if logits.shape[-1] < 4 * _FEW:
        return None
    likely = logits.softmax(dim=-1)
    best = likely.topk(_FEW, dim=-1).values
    likelier = best.cumsum(dim=-1) - best
    last = (likelier < p).sum(dim=-1, keepdim=True) - 1
    if int(last.max()) + 1 >= _FEW:
        return None
    ends = (last, last + 1)
    smallest, largest = (best.gather(-1, end) for end in ends)
    inside, outside = (likelier.gather(-1, end) for end in ends)
    if bool(((smallest == largest) | (p - inside < _MARGIN) | (outside - p < _MARGIN)).any()):
        return None
    return logits.masked_fill(likely < smallest, -torch.inf)


def keep_min_p(logits: Float[Tensor, "batch vocab"], share: float) -> Float[Tensor, "batch vocab"]:
    """Hide tokens that are less likely than this share of the likeliest."""
    likely = logits.softmax(dim=-1)
    return logits.masked_fill(likely < share * likely.amax(dim=-1, keepdim=True), -torch.inf)


def draw(logits: Float[Tensor, "batch vocab"], generator: torch.Generator | None = None) -> Int[Tensor, " batch"]:
    """Draw a token from ``softmax(logits)``.

    On a CPU, where random numbers are slow, one is enough: the token at whose probability the sum of all before it
    passes that number. Elsewhere by the Gumbel-max trick: no probabilities, and no wait for the device.
    """
    if logits.device.type == "cpu":
        sums = logits.softmax(dim=-1).cumsum(dim=-1, dtype=torch.float64)
        chance = torch.rand(len(logits), 1, dtype=torch.float64, generator=generator) * sums[:, -1:]
        return torch.searchsorted(sums, chance, right=True).clamp(max=logits.shape[-1] - 1)[:, 0]
    noise = torch.empty_like(logits).exponential_(generator=generator)
    return (logits - noise.log()).argmax(dim=-1)
