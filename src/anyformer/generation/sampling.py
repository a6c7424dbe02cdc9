"""From logits to the next token: greedy, or drawn from what temperature, top-k, top-p and min-p leave.

The filters are those of Hugging Face's sampling, in its order (temperature, top-k, top-p, min-p) and with its treatment
of ties, so the same settings leave the same tokens.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from anyformer.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How the next token is chosen.

    Raises:
        UserError: a value that describes no distribution.
    """

    temperature: float = 0.0
    """Logits are divided by it: below 1 sharper, above 1 flatter. 0: always the likeliest token (greedy);
    otherwise at least 1e-6."""
    top_k: int | None = None
    """Only the k likeliest tokens can be drawn; None: all."""
    top_p: float | None = None
    """Only the likeliest tokens that together have this probability can be drawn (Holtzman et al. 2020);
    None: all."""
    min_p: float | None = None
    """Only tokens at least this share as likely as the likeliest can be drawn (Nguyen et al. 2024); None: all."""
    repetition_penalty: float = 1.0
    """Above 1 lowers the scores of what prompt and text have already (Keskar et al. 2019)."""
    presence_penalty: float = 0.0
    """Taken from the logit of a token that is among the new ones already."""
    frequency_penalty: float = 0.0
    """Taken from the logit of a token once for each time it is among the new ones."""
    logit_bias: Mapping[int, float] | None = None
    """Added to the logits of these tokens."""

    def __post_init__(self) -> None:
        if not 0.0 <= self.temperature < float("inf"):
            raise UserError(f"temperature is 0 (always the likeliest token) or more, not {self.temperature}.")
        if 0.0 < self.temperature < 1e-6:
            raise UserError(
                f"temperature {self.temperature} is too small to divide by: 0 always takes the likeliest token."
            )
        if self.top_k is not None and self.top_k < 1:
            raise UserError(
                f"top_k is a number of tokens, at least 1, not {self.top_k}: leave it out to keep them all."
            )
        if self.top_p is not None and not 0.0 < self.top_p <= 1.0:
            raise UserError(
                f"top_p is a probability above 0 and up to 1, not {self.top_p}: leave it out to keep all tokens."
            )
        if self.min_p is not None and not 0.0 <= self.min_p <= 1.0:
            raise UserError(f"min_p is a share between 0 and 1, not {self.min_p}.")
        if not 0.0 < self.repetition_penalty < float("inf"):
            raise UserError(f"repetition_penalty is a positive number, 1 for none, not {self.repetition_penalty}.")
        for name in ("presence_penalty", "frequency_penalty"):
            if not abs(getattr(self, name)) < float("inf"):
                raise UserError(f"{name} is a finite number, 0 for none, not {getattr(self, name)}.")
        for token, bias in (self.logit_bias or {}).items():
            # -inf bans a token.
            if not bias < float("inf"):
                raise UserError(f"logit_bias of token {token} is a number that can be added, not {bias}.")

    def filter(self, logits: Float[Tensor, "batch vocab"]) -> Float[Tensor, "batch vocab"]:
        """The logits that are drawn from: -inf for every token that can't be."""
        logits = apply_temperature(logits, self.temperature)
        if self.top_k is not None:
            logits = keep_top_k(logits, self.top_k)
        if self.top_p is not None:
            logits = keep_top_p(logits, self.top_p)
        if self.min_p is not None:
            logits = keep_min_p(logits, self.min_p)
        return logits

    def choose(
        self, logits: Float[Tensor, "batch vocab"], generator: torch.Generator | None = None
    ) -> Int[Tensor, " batch"]:
        """The next token of each text; `generator` None draws from torch's global one."""
        if self.temperature == 0.0:
            return greedy(logits)
        return draw(self.filter(logits), generator)


def seeded(seed: int | None, device: torch.device) -> torch.Generator | None:
    """A generator of random numbers; None for None: torch's global one. Raises UserError for a seed beyond 64 bits."""
    if seed is None:
        return None
    if not -(2**63) <= seed < 2**63:
        raise UserError(f"seed is a whole number of 64 bits, below 2**63, not {str(seed)[:40]}.")
    return torch.Generator(device=device).manual_seed(seed)


def greedy(logits: Float[Tensor, "batch vocab"]) -> Int[Tensor, " batch"]:
    """The likeliest token; of equals the one with the lowest id."""
    return logits.argmax(dim=-1)


def apply_temperature(logits: Float[Tensor, "batch vocab"], temperature: float) -> Float[Tensor, "batch vocab"]:
    """``logits / temperature``, which must be positive."""
    return logits if temperature == 1.0 else logits / temperature


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
    """The same without sorting a large vocabulary, where a few tokens have most of the probability; None elsewhere.

    Where equally likely tokens stand at the border, or rounding might decide, sorting shall say who stays.
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
