"""Vectors for runs of tokens: what two or three mean together is looked up, not put together by attention."""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

_FACTOR = -7046029254386353131
"""2^64 divided by the golden ratio, as a signed number: multiplying by it scatters neighbors (Knuth, TAOCP 3, 6.4)."""
_WELL_MIXED = 24
"""Bits of a product that depend on too little to be used."""


class NgramEmbedding(nn.Module):
    """The sum of one vector for each run of 2, 3, ... tokens that ends at a token (Pagnoni et al. 2024, section 3.2.1).

    There are far more runs than rows in a table, so a hash says which row a run has, and some share one. The beginning
    of a text counts as a token. Rows begin at zero: a model starts as it would without them, and a run that was never
    seen says nothing.

    Args:
        longest: Tokens of the longest run, at least 2.
        rows: Vectors in the table, which runs of all lengths share.
        d_model: Width of a vector.
    """

    def __init__(self, longest: int, rows: int, d_model: int) -> None:
        super().__init__()
        self.longest = longest
        self.table = nn.Parameter(torch.zeros(rows, d_model))

    def forward(self, recent: Int[Tensor, "batch time longest"]) -> Float[Tensor, "batch time d_model"]:
        """Look runs up, given each token and those before it (`latest`)."""
        return F.embedding(self.rows(recent), self.table).sum(dim=2)

    def rows(self, recent: Int[Tensor, "batch time longest"]) -> Int[Tensor, "batch time runs"]:
        """The row of each run, of two tokens first."""
        mixed, found = recent[..., 0], list[Tensor]()
        for earlier in recent.unbind(dim=-1)[1:]:
            mixed = mixed * _FACTOR + earlier
            found.append((mixed * _FACTOR >> _WELL_MIXED) % len(self.table))
        return torch.stack(found, dim=-1)


def latest(
    tokens: Int[Tensor, "batch cells"],
    cells: Int[Tensor, "#batch time"],
    places: Int[Tensor, "#batch time"],
    count: int,
) -> Int[Tensor, "batch time count"]:
    """Some tokens of a text and those before each, the nearest first; -1 before its beginning.

    Args:
        tokens: Of each text.
        cells: Where in there those tokens are; each stands behind its predecessor.
        places: How many tokens of its text come before each.
        count: How many to return for each, itself included.
    """
    back = torch.arange(count, device=tokens.device)
    rows = torch.arange(len(tokens), device=tokens.device)[:, None, None]
    found = tokens[rows, (cells[..., None] - back).clamp(min=0)]
    return found.masked_fill(places[..., None] < back, -1)
