"""The transformer block that every family is made of."""

from jaxtyping import Float
from torch import Tensor, nn

from anyformer.blocks.attention import ALL_VISIBLE, MultiHeadAttention
from anyformer.blocks.dropout import Dropout
from anyformer.blocks.feed_forward import FeedForward
from anyformer.blocks.kv_cache import KeysValues, LayerCache
from anyformer.blocks.mask import Mask
from anyformer.blocks.norm import NORMS
from anyformer.blocks.position import Rotation
from anyformer.config import AttentionConfig, ConfigError, FeedForwardConfig, NormConfig
from anyformer.errors import nearest


def norm(config: NormConfig, width: int) -> nn.Module:
    """The norm that the config names. Raises ConfigError for an unknown kind."""
    if config.kind not in NORMS:
        raise ConfigError(f"norm.kind: {config.kind!r} is unknown ({nearest(config.kind, NORMS)}).")
    return NORMS[config.kind](width, config.eps)


class TransformerBlock(nn.Module):
    """Attention, then feed-forward, each added to the residual stream; with a look at the source in between if asked.

    ::

        pre-norm (GPT-2)                       post-norm (2017, BERT)
        x ──┬─ norm ─ attention ─── + ──▶      x ──┬─ attention ─── + ─ norm ──▶
            └────────────────────── ┘              └─────────────── ┘

    Args:
        attention: Config of the attention.
        feed_forward: Config of the feed-forward.
        norm_config: Config of the norms and their place.
        d_model: Width of the residual stream.
        layer: The number of this block in its stack.
        cross: Whether it looks at a source as well.
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

        def attend() -> MultiHeadAttention:
            return MultiHeadAttention(attention, d_model, layer=layer, norm_eps=norm_config.eps)

        self.attention = attend()
        self.attention_norm = norm(norm_config, d_model)
        self.cross_attention = attend() if cross else None
        self.cross_attention_norm = norm(norm_config, d_model) if cross else None
        self.feed_forward = FeedForward(feed_forward, d_model)
        self.feed_forward_norm = norm(norm_config, d_model)
        self.dropout = Dropout(dropout)

    def forward(
        self,
        x: Float[Tensor, "batch time d_model"],
        source: Float[Tensor, "batch source d_model"] | None = None,
        *,
        mask: Mask = ALL_VISIBLE,
        source_mask: Mask = ALL_VISIBLE,
        rotation: Rotation | None = None,
        cache: LayerCache | None = None,
    ) -> Float[Tensor, "batch time d_model"]:
        """Pass a batch of texts through the block.

        Args:
            x: The residual stream.
            source: What cross-attention looks at; may be left out once the cache knows it.
            mask: Which tokens see which.
            source_mask: Which tokens see which of the source.
            rotation: Rotary positions.
            cache: This layer's memory of earlier tokens.
        """
        cross, cross_norm = self.cross_attention, self.cross_attention_norm
        if self.pre_norm:
            x = x + self.dropout(self.attention(self.attention_norm(x), mask=mask, rotation=rotation, cache=cache))
            if cross is not None and cross_norm is not None:
                seen = _keys_values(cross, source, cache)
                x = x + self.dropout(cross(cross_norm(x), seen, mask=source_mask))
            return x + self.dropout(self.feed_forward(self.feed_forward_norm(x)))
        x = self.attention_norm(x + self.dropout(self.attention(x, mask=mask, rotation=rotation, cache=cache)))
        if cross is not None and cross_norm is not None:
            seen = _keys_values(cross, source, cache)
            x = cross_norm(x + self.dropout(cross(x, seen, mask=source_mask)))
        return self.feed_forward_norm(x + self.dropout(self.feed_forward(x)))


def _keys_values(attention: MultiHeadAttention, source: Tensor | None, cache: LayerCache | None) -> KeysValues:
    """The source's keys and values, made once for each text."""
    if cache is not None and cache.source is not None:
        return cache.source
    if source is None:
        raise ValueError("a block with cross-attention needs a source")
    made = attention.keys_values(source)
    if cache is not None:
        cache.read(made)
    return made
