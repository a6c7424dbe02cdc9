"""Where the documents of a row begin, when several are packed into it."""

import torch
from jaxtyping import Bool, Int
from torch import Tensor


def positions_in_documents(
    documents: Int[Tensor, "batch time"], counts: Bool[Tensor, "batch time"] | None = None
) -> Int[Tensor, "batch time"]:
    """The position of each token in its document; -1 for those that do not count.

    Args:
        documents: The document of each token, a number for each stretch of them.
        counts: False for a token that takes up no position; None: all do.
    """
    ones = torch.ones_like(documents) if counts is None else counts.long()
    total = ones.cumsum(dim=1)
    before = ((total - ones) * _first(documents)).cummax(dim=1).values
    return (total - before) * ones - 1


def lengths_of_documents(
    documents: Int[Tensor, "batch time"], positions: Int[Tensor, "batch time"]
) -> Int[Tensor, "batch time"]:
    """For every token the number of positions in its document."""
    number = _first(documents).cumsum(dim=1) - 1
    lengths = torch.zeros_like(number).scatter_reduce(1, number, positions + 1, "amax")
    return lengths.gather(1, number)


def _first(documents: Tensor) -> Tensor:
    """Marks the tokens with which a document begins."""
    first = torch.ones_like(documents, dtype=torch.bool)
    first[:, 1:] = documents[:, 1:] != documents[:, :-1]
    return first
