"""From token ids to the input of the first block."""

from itertools import accumulate

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from anyformer.blocks.linear import Dropout, Embedding, Linear
from anyformer.blocks.norm import norm
from anyformer.blocks.quantized import QuantizedMatrix
from anyformer.config import EmbeddingConfig, NormConfig

_FACTOR = -7046029254386353131
"""2^64 divided by the golden ratio, as a signed number: multiplying by it scatters neighbors (Knuth, TAOCP 3, 6.4)."""
_LOW_BITS = 24
"""Low bits of a product, which depend on too little to be used."""


class NgramEmbedding(nn.Module):
    """The sum of a vector for each n-gram of 2 to `longest` tokens up to a token (Pagnoni et al. 2024, section 3.2.1).

    There are far more n-grams than rows in the table, so a hash gives the row of an n-gram, and some share one. The
    beginning of a sequence counts as a token. Rows start at zero: a model starts as it would without them, and an
    n-gram that was never seen adds nothing.
    """

    def __init__(self, longest: int, rows: int, d_model: int) -> None:
        super().__init__()
        self.longest = longest
        self.table = nn.Parameter(torch.zeros(rows, d_model))

    def forward(self, ngram_window: Int[Tensor, "batch time longest"]) -> Float[Tensor, "batch time d_model"]:
        """Look the n-grams up, given each token and those before it (`ngram_window`)."""
        return F.embedding(self.rows(ngram_window), self.table).sum(dim=2)

    def rows(self, ngram_window: Int[Tensor, "batch time longest"]) -> Int[Tensor, "batch time ngrams"]:
        """The row of each n-gram, that of two tokens first."""
        first, *earlier = ngram_window.unbind(dim=-1)
        hashes = list(accumulate(earlier, lambda hashed, token: hashed * _FACTOR + token, initial=first))[1:]
        return (torch.stack(hashes, dim=-1) * _FACTOR >> _LOW_BITS) % len(self.table)


def ngram_window(
    tokens: Int[Tensor, "batch slots"],
    slots: Int[Tensor, "#batch time"],
    positions: Int[Tensor, "#batch time"],
    count: int,
) -> Int[Tensor, "batch time count"]:
    """Tokens at these slots of their sequences and those before each, the nearest first; -1 before the beginning.

    Args:
        positions: How many tokens of its sequence come before each.
        count: How many to return for each, itself included.
    """
    back = torch.arange(count, device=tokens.device)
    rows = torch.arange(len(tokens), device=tokens.device)[:, None, None]
    window = tokens[rows, (slots[..., None] - back).clamp(min=0)]
    return window.masked_fill(positions[..., None] < back, -1)


class TokenEmbedding(nn.Module):
    """A table with one vector a token, times a factor or sqrt(d_model) (Vaswani et al. 2017, section 3.4)."""

    def __init__(self, config: EmbeddingConfig, vocab_size: int, d_model: int) -> None:
        super().__init__()
        self.table = Embedding(vocab_size, config.width or d_model, padding_idx=config.padding)
        self.scale = config.scale * (d_model**0.5 if config.scaled else 1.0)

    @property
    def weight(self) -> Tensor | QuantizedMatrix:
        """The table as a matrix, which a tied head multiplies by."""
        return self.table.weight

    def forward(self, tokens: Int[Tensor, "batch time"]) -> Float[Tensor, "batch time width"]:
        """Look the tokens up."""
        vectors = self.table(tokens)
        return vectors if self.scale == 1.0 else vectors * self.scale


class InputEmbedding(nn.Module):
    """``dropout(norm(token + ngrams + segment + position))``, of which a config may leave out all but the first.

    Of narrow vectors, ``projection(...)`` of it makes those of the residual stream (Lan et al. 2020, section 3.1).
    """

    def __init__(self, config: EmbeddingConfig, norm_config: NormConfig, d_model: int) -> None:
        super().__init__()
        width = config.width or d_model
        self.ngrams = NgramEmbedding(config.ngrams, config.ngram_rows, width) if config.ngrams > 1 else None
        self.segments = Embedding(config.segments, width) if config.segments else None
        self.norm = norm(norm_config, width) if config.norm else None
        self.dropout = Dropout(config.dropout)
        self.projection = Linear(width, d_model) if config.width else None

    def forward(
        self,
        vectors: Float[Tensor, "batch time width"],
        positions: Float[Tensor, "#batch time width"] | None = None,
        segments: Int[Tensor, "batch time"] | None = None,
        ngram_window: Int[Tensor, "batch time ngrams"] | None = None,
    ) -> Float[Tensor, "batch time d_model"]:
        """Sum the vectors of tokens, their positions, their segments (None: all the first) and their n-grams."""
        if self.ngrams is not None:
            assert ngram_window is not None
            vectors = vectors + self.ngrams(ngram_window)
        if self.segments is not None:
            vectors = vectors + (self.segments.weight[0] if segments is None else self.segments(segments))
        if positions is not None:
            vectors = vectors + positions.to(vectors.dtype)
        if self.norm is not None:
            vectors = self.norm(vectors)
        vectors = self.dropout(vectors)
        return vectors if self.projection is None else self.projection(vectors)
