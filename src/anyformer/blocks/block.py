"""The transformer block that every family is made of."""

from jaxtyping import Float, Int
from torch import Tensor, nn

from anyformer.blocks.attention import ALL_VISIBLE, UNROTATED, MultiHeadAttention
from anyformer.blocks.experts import Experts
from anyformer.blocks.feed_forward import FeedForward
from anyformer.blocks.kv_cache import KeysValues, LayerCache
from anyformer.blocks.linear import Dropout
from anyformer.blocks.norm import norm
from anyformer.blocks.pooling import select
from anyformer.blocks.position import Rotation
from anyformer.config import AttentionConfig, FeedForwardConfig, NormConfig
from anyformer.kernels import AttentionMask


class TransformerBlock(nn.Module):
    """Attention, then feed-forward, each added to the residual stream, with cross-attention in between if asked.

    ::

        pre-norm (GPT-2)                       post-norm (2017, BERT)
        x ──┬─ norm ─ attention ─── + ──▶      x ──┬─ attention ─── + ─ norm ──▶
            └────────────────────── ┘              └─────────────── ┘

    Args:
        layer: The number of this block in its stack.
        cross: Whether it attends to an encoder as well.
        dropout: Dropout on what is added to the stream.
    """

    def __init__(
        self,
        attention: AttentionConfig,
        feed_forward: FeedForwardConfig,
        norm_config: NormConfig,
        d_model: int,
        *,
        layer: int = 0,
        cross: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.pre_norm = norm_config.placement == "pre"

        def new_attention() -> MultiHeadAttention:
            return MultiHeadAttention(attention, d_model, layer=layer, norm_eps=norm_config.eps)

        self.attention = new_attention()
        self.attention_norm = norm(norm_config, d_model)
        self.cross_attention = new_attention() if cross else None
        self.cross_attention_norm = norm(norm_config, d_model) if cross else None
        self.feed_forward = (Experts if feed_forward.experts else FeedForward)(feed_forward, d_model)
        self.feed_forward_norm = norm(norm_config, d_model)
        self.dropout = Dropout(dropout)

    def forward(
        self,
        x: Float[Tensor, "#batch time d_model"],
        encoder_states: Float[Tensor, "batch source d_model"] | None = None,
        *,
        mask: AttentionMask = ALL_VISIBLE,
        source_mask: AttentionMask = ALL_VISIBLE,
        rotation: Rotation = UNROTATED,
        cache: LayerCache | None = None,
        query_index: Int[Tensor, " batch"] | None = None,
    ) -> Float[Tensor, "#batch queries d_model"]:
        """Pass the residual stream through the block.

        Args:
            encoder_states: What cross-attention attends to; may be left out once the cache has its keys and values.
            mask, source_mask: Which tokens see which, and which of the encoder's.
            rotation: Rotary positions.
            cache: This layer's keys and values of earlier tokens.
            query_index: The one token of each sequence whose output is needed, in `mask` and `rotation` as well: of
                the others only keys and values are computed. None: all are needed.
        """
        cross, cross_norm = self.cross_attention, self.cross_attention_norm
        encoder_kv = None if cross is None else _encoder_kv(cross, encoder_states, cache)
        states = self.attention_norm(x) if self.pre_norm else x
        attended = self.attention(select(states, query_index), states, mask=mask, rotation=rotation, cache=cache)
        x = select(x, query_index) + self.dropout(attended)
        if self.pre_norm:
            if cross is not None and cross_norm is not None:
                x = x + self.dropout(cross(cross_norm(x), encoder_kv, mask=source_mask))
            return x + self.dropout(self.feed_forward(self.feed_forward_norm(x)))
        x = self.attention_norm(x)
        if cross is not None and cross_norm is not None:
            x = cross_norm(x + self.dropout(cross(x, encoder_kv, mask=source_mask)))
        return self.feed_forward_norm(x + self.dropout(self.feed_forward(x)))


def _encoder_kv(attention: MultiHeadAttention, encoder_states: Tensor | None, cache: LayerCache | None) -> KeysValues:
    """Keys and values of the encoder's output, computed once for each sequence."""
    if cache is not None and cache.encoder_kv is not None:
        return cache.encoder_kv
    if encoder_states is None:
        raise ValueError("a block with cross-attention needs the encoder's output")
    encoder_kv = attention.keys_values(encoder_states)
    if cache is not None:
        cache.set_cross(encoder_kv)
    return encoder_kv
