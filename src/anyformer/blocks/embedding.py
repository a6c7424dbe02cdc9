"""From token ids to the input of the first block."""

from jaxtyping import Float, Int
from torch import Tensor, nn

from anyformer.blocks.dropout import Dropout
from anyformer.blocks.linear import Embedding
from anyformer.blocks.ngrams import NgramEmbedding
from anyformer.blocks.norm import norm
from anyformer.blocks.quantized import QuantizedMatrix
from anyformer.config import EmbeddingConfig, NormConfig


class TokenEmbedding(nn.Module):
    """A table with one vector a token, times sqrt(d_model) if asked for (Vaswani et al. 2017, section 3.4)."""

    def __init__(self, config: EmbeddingConfig, vocab_size: int, d_model: int) -> None:
        super().__init__()
        self.table = Embedding(vocab_size, d_model, padding_idx=config.padding)
        self.scale = d_model**0.5 if config.scaled else 1.0

    @property
    def weight(self) -> Tensor | QuantizedMatrix:
        """The table as a matrix, which a tied head multiplies by."""
        return self.table.weight

    def forward(self, tokens: Int[Tensor, "batch time"]) -> Float[Tensor, "batch time d_model"]:
        """Look the tokens up."""
        vectors = self.table(tokens)
        return vectors if self.scale == 1.0 else vectors * self.scale


class InputEmbedding(nn.Module):
    """``dropout(norm(token + ngrams + segment + position))``, of which a config may leave out all but the first."""

    def __init__(self, config: EmbeddingConfig, norm_config: NormConfig, d_model: int) -> None:
        super().__init__()
        self.ngrams = NgramEmbedding(config.ngrams, config.ngram_rows, d_model) if config.ngrams > 1 else None
        self.segments = Embedding(config.segments, d_model) if config.segments else None
        self.norm = norm(norm_config, d_model) if config.norm else None
        self.dropout = Dropout(config.dropout)

    def forward(
        self,
        vectors: Float[Tensor, "batch time d_model"],
        positions: Float[Tensor, "#batch time d_model"] | None = None,
        segments: Int[Tensor, "batch time"] | None = None,
        ngram_window: Int[Tensor, "batch time ngrams"] | None = None,
    ) -> Float[Tensor, "batch time d_model"]:
        """Sum the embeddings of each token.

        Args:
            vectors: The token vectors.
            positions: What a positional encoding adds.
            segments: The segment that each token belongs to; None: all to the first.
            ngram_window: Each token and those before it (`blocks.ngrams.ngram_window`), where n-grams have vectors.
        """
        if self.ngrams is not None:
            assert ngram_window is not None
            vectors = vectors + self.ngrams(ngram_window)
        if self.segments is not None:
            vectors = vectors + (self.segments.weight[0] if segments is None else self.segments(segments))
        if positions is not None:
            vectors = vectors + positions.to(vectors.dtype)
        if self.norm is not None:
            vectors = self.norm(vectors)
        return self.dropout(vectors)
