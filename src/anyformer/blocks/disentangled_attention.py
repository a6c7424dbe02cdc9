"""Disentangled attention (He et al. 2021, 2006.03654, section 3.1)."""

from typing import Any

from jaxtyping import Float
from torch import Tensor
from typing_extensions import override

from anyformer import kernels
from anyformer.blocks.attention import MultiHeadAttention
from anyformer.config import AttentionConfig
from anyformer.kernels import AttentionMask


class DisentangledAttention(MultiHeadAttention):
    """Attention that compares contents and relative positions apart::

        softmax((q_i . k_j + q_i . K r_d + Q r_d . k_j) / sqrt(3 head_dim)) v_j,    d = bucket(i - j)

    (equation 4). The vectors r come with the mask, and are the same in all layers; Q and K are the matrices that make
    queries and keys of tokens, too (He et al. 2023, 2111.09543; its code, share_att_key).
    """

    def __init__(self, config: AttentionConfig, d_model: int, **options: Any) -> None:
        super().__init__(config, d_model, **options)
        self.scale /= 3**0.5

    @override
    def add_scores(
        self,
        mask: AttentionMask,
        query: Float[Tensor, "#batch heads queries head_dim"],
        key: Float[Tensor, "#batch heads keys head_dim"],
    ) -> AttentionMask:
        """The mask, with the two scores of positions."""
        if (relative := mask.relative) is None:
            raise ValueError("disentangled attention needs a mask with the vectors of relative positions")
        vectors = relative.vectors
        if relative.dropout > 0.0:
            vectors = kernels.dropout(vectors, relative.dropout, counters=kernels.shared_counters(vectors))
        content_to_position = query @ self._split(self.key(vectors), self.heads).transpose(2, 3)
        position_to_content = key @ self._split(self.query(vectors), self.heads).transpose(2, 3)
        return kernels.with_relative(mask, self.scale * content_to_position, self.scale * position_to_content)
