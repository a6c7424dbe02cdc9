"""Multi-head attention, for self- and cross-attention, causal or not, cached or not."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from anyformer import kernels
from anyformer.blocks.kv_cache import KeysValues, LayerCache
from anyformer.blocks.linear import Dropout, Linear
from anyformer.blocks.norm import RMSNorm
from anyformer.blocks.position import Rotation
from anyformer.config import AttentionConfig
from anyformer.kernels import AttentionMask, Mask

ALL_VISIBLE = Mask()
UNROTATED = Rotation()


class MultiHeadAttention(nn.Module):
    """``softmax(q k^T / sqrt(head_dim)) v`` in several heads (Vaswani et al. 2017, equation 1 and section 3.2.2).

    With fewer key/value heads than query heads, each is shared by a group of them (Ainslie et al. 2023).

    Args:
        layer: The number of this layer, for what varies with it.
        norm_eps: Epsilon of the norms on queries and keys, where the config has them.
    """

    def __init__(self, config: AttentionConfig, d_model: int, *, layer: int = 0, norm_eps: float = 1e-6) -> None:
        super().__init__()
        self.heads = config.heads
        self.kv_heads = config.kv_heads or config.heads
        self.head_dim = config.head_dim or d_model // config.heads
        self.scale = self.head_dim**-0.5 if config.scale is None else config.scale
        self.scale /= layer + 1 if config.scale_by_layer else 1
        self.dropout = Dropout(config.dropout)
        self.query = Linear(d_model, self.heads * self.head_dim, bias=config.bias)
        self.key = Linear(d_model, self.kv_heads * self.head_dim, bias=config.bias)
        self.value = Linear(d_model, self.kv_heads * self.head_dim, bias=config.bias)
        self.output = Linear(self.heads * self.head_dim, d_model, bias=config.output_bias)
        self.query_norm = RMSNorm(self.head_dim, norm_eps) if config.qk_norm else nn.Identity()
        self.key_norm = RMSNorm(self.head_dim, norm_eps) if config.qk_norm else nn.Identity()

    def forward(
        self,
        x: Float[Tensor, "#batch queries d_model"],
        states: Float[Tensor, "#batch keys d_model"] | KeysValues | None = None,
        *,
        mask: AttentionMask = ALL_VISIBLE,
        rotation: Rotation = UNROTATED,
        cache: LayerCache | None = None,
    ) -> Float[Tensor, "#batch queries d_model"]:
        """Attend from each token of x to each of x, or of other states.

        Args:
            x: Hidden states that make the queries.
            states: Hidden states that make the keys and values, or these (`keys_values`); None: x.
            mask: Which queries see which keys.
            rotation: Rotary positions of queries and keys.
            cache: Keys and values of earlier tokens, which the new ones are added to.
        """
        query, key, value = self.project(x, states, rotation)
        if cache is not None:
            key, value = cache.update(key, value)
        out = kernels.masked_attention(query, key, value, mask, self.dropout.rate, self.scale)
        return self.output(out.transpose(1, 2).flatten(2))

    def weights(
        self,
        x: Float[Tensor, "#batch queries d_model"],
        states: Float[Tensor, "#batch keys d_model"] | KeysValues | None = None,
        *,
        mask: AttentionMask = ALL_VISIBLE,
        rotation: Rotation = UNROTATED,
    ) -> Float[Tensor, "rows heads time seen"]:
        """The attention weights, which `forward` never holds as a whole, in float32 at least; every row sums to 1."""
        query, key, _ = self.project(x, states, rotation)
        dtype = torch.promote_types(query.dtype, torch.float32)
        return kernels.masked_attention_weights(query.to(dtype), key.to(dtype), mask, self.scale)

    def project(
        self, x: Tensor, states: Tensor | KeysValues | None = None, rotation: Rotation = UNROTATED
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Queries [batch, heads, queries, head_dim]; keys and values [batch, kv_heads, keys, head_dim]."""
        query = self.query_norm(self.query(x).unflatten(2, (self.heads, self.head_dim))).transpose(1, 2)
        if isinstance(states, KeysValues):
            return query, states.keys, states.values
        key, value = self.keys_values(x if states is None else states)
        return *rotation(query, key), value

    def keys_values(self, states: Float[Tensor, "batch keys d_model"]) -> KeysValues:
        """Keys and values of hidden states."""
        key = self.key_norm(self.key(states).unflatten(2, (self.kv_heads, self.head_dim)))
        value = self.value(states).unflatten(2, (self.kv_heads, self.head_dim))
        return KeysValues(key.transpose(1, 2), value.transpose(1, 2))
