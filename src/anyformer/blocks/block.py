"""The transformer block that every family is made of."""

from collections.abc import Callable

from jaxtyping import Float, Int
from torch import Tensor, nn

from anyformer.blocks.attention import ALL_VISIBLE, UNROTATED, MultiHeadAttention
from anyformer.blocks.disentangled_attention import DisentangledAttention
from anyformer.blocks.experts import Experts
from anyformer.blocks.feed_forward import FeedForward
from anyformer.blocks.kv_cache import KeysValues, LayerCache
from anyformer.blocks.latent_attention import LatentAttention
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

    `NormConfig` has the other placements.

    Args:
        layer: The number of this block in its stack.
        cross: Whether it attends to an encoder as well.
        dropout, residual_scale: Dropout and a factor on what is added to the stream.
        disentangled: Whether attention compares the relative positions of its mask as well.
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
        residual_scale: float = 1.0,
        disentangled: bool = False,
    ) -> None:
        super().__init__()
        placement = norm_config.placement
        self.post_norm = placement == "post"
        self.is_parallel, self.shares_norm = norm_config.is_parallel, placement == "parallel_shared"
        self.residual_scale = residual_scale

        def new_attention() -> MultiHeadAttention:
            kind = DisentangledAttention if disentangled else MultiHeadAttention
            return kind(attention, d_model, layer=layer, norm_config=norm_config)

        def new_norm(*absent_in: str) -> nn.Module:
            return nn.Identity() if placement in absent_in else norm(norm_config, d_model)

        def new_output_norm() -> nn.Module:
            return new_norm("pre", "post", "parallel", "parallel_shared")

        self.attention = LatentAttention(attention, d_model) if attention.latent else new_attention()
        self.attention_norm = new_norm("branch") if layer or norm_config.first else nn.Identity()
        self.attention_output_norm = new_output_norm()
        self.cross_attention = new_attention() if cross else None
        self.cross_attention_norm = new_norm("branch") if cross else nn.Identity()
        self.cross_attention_output_norm = new_output_norm() if cross else nn.Identity()
        self.feed_forward = (Experts if feed_forward.experts else FeedForward)(feed_forward, d_model)
        self.feed_forward_norm = new_norm("branch", "parallel_shared")
        self.feed_forward_output_norm = new_output_norm()
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
            cache: This layer's keys and values of earlier tokens.
            query_index: The one token of each sequence whose output is needed, in `mask` and `rotation` as well: of
                the others only keys and values are computed. None: all are needed.
        """

        def attend(states: Tensor) -> Tensor:
            return self.attention(select(states, query_index), states, mask=mask, rotation=rotation, cache=cache)

        if self.is_parallel:
            return self._add_parallel(x, attend, query_index)
        x = self._add(x, attend, self.attention_norm, self.attention_output_norm, query_index)
        if (cross := self.cross_attention) is not None:
            encoder_kv = _encoder_kv(cross, encoder_states, cache)
            norms = self.cross_attention_norm, self.cross_attention_output_norm
            x = self._add(x, lambda states: cross(states, encoder_kv, mask=source_mask), *norms)
        return self._add(x, self.feed_forward, self.feed_forward_norm, self.feed_forward_output_norm)

    def _add(
        self,
        x: Float[Tensor, "#batch time d_model"],
        f: Callable[[Tensor], Tensor],
        norm: nn.Module,
        output_norm: nn.Module,
        query_index: Int[Tensor, " batch"] | None = None,
    ) -> Float[Tensor, "#batch queries d_model"]:
        """``x + output_norm(f(norm(x)))``, or ``norm(x + f(x))`` where the norm comes after the sum."""
        states = x if self.post_norm else norm(x)
        x = select(x, query_index) + self._scaled(output_norm(f(states)))
        return norm(x) if self.post_norm else x

    def _add_parallel(
        self, x: Tensor, attend: Callable[[Tensor], Tensor], query_index: Tensor | None
    ) -> Float[Tensor, "#batch queries d_model"]:
        """``x + attend(norm1(x)) + feed_forward(norm2(x))``, where both norms may be one."""
        states = self.attention_norm(x)
        attended, x = attend(states), select(x, query_index)
        states = select(states, query_index) if self.shares_norm else self.feed_forward_norm(x)
        return x + self._scaled(attended) + self._scaled(self.feed_forward(states))

    def _scaled(self, x: Tensor) -> Tensor:
        """The output of a part of the block as it is added to the stream."""
        x = self.dropout(x)
        return x if self.residual_scale == 1.0 else x * self.residual_scale


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
