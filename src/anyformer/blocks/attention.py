"""Multi-head attention, for self- and cross-attention, causal or not, cached or not."""

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from anyformer import kernels
from anyformer.blocks.kv_cache import KeysValues, LayerCache
from anyformer.blocks.linear import Dropout, Linear
from anyformer.blocks.norm import norm
from anyformer.blocks.position import Rotation
from anyformer.config import AttentionConfig, NormConfig
from anyformer.kernels import AttentionMask, Mask

ALL_VISIBLE = Mask()
UNROTATED = Rotation()


class MultiHeadAttention(nn.Module):
    """``softmax(q k^T / sqrt(head_dim)) v`` in several heads (Vaswani et al. 2017, equation 1 and section 3.2.2).

    With fewer key/value heads than query heads, each is shared by a group of them (Ainslie et al. 2023).

    Args:
        layer: The number of this layer, for what varies with it.
        norm_config: The norms of the model, which those of queries and keys are like; None: RMS norms.
    """

    def __init__(
        self, config: AttentionConfig, d_model: int, *, layer: int = 0, norm_config: NormConfig | None = None
    ) -> None:
        super().__init__()
        self.heads = config.heads
        self.kv_heads = config.kv_heads or config.heads
        self.head_dim = self.value_dim = config.head_dim or d_model // config.heads
        self.scale = self.head_dim**-0.5 if config.scale is None else config.scale
        self.scale /= layer + 1 if config.scale_by_layer else 1
        self.softcap = config.softcap
        self.sinks = nn.Parameter(torch.zeros(self.heads)) if config.sinks else None
        self.dropout = Dropout(config.dropout)
        self.query = Linear(d_model, self.heads * self.head_dim, bias=config.bias)
        self.key = Linear(d_model, self.kv_heads * self.head_dim, bias=config.bias)
        self.value = Linear(d_model, self.kv_heads * self.head_dim, bias=config.bias)
        self.output = Linear(self.heads * self.head_dim, d_model, bias=config.output_bias)
        self.qk_norm = config.qk_norm
        self.query_norm = self._new_norm(self.heads, norm_config or NormConfig(eps=1e-6))
        self.key_norm = self._new_norm(self.kv_heads, norm_config or NormConfig(eps=1e-6))

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
            states: Hidden states that make the keys and values, or these (`keys_values`); None: x.
            cache: Keys and values of earlier tokens, which the new ones are added to.
        """
        query, key, value = self.project(x, states, rotation)
        if cache is not None:
            key, value = cache.update(key, value)
        mask = self.add_scores(mask, query, key)
        out = kernels.masked_attention(query, key, value, mask, self.dropout.rate, self.scale, self.softcap, self.sinks)
        return self.output(out.transpose(1, 2).flatten(2))

    def weights(
        self,
        x: Float[Tensor, "#batch queries d_model"],
        states: Float[Tensor, "#batch keys d_model"] | KeysValues | None = None,
        *,
        mask: AttentionMask = ALL_VISIBLE,
        rotation: Rotation = UNROTATED,
    ) -> Float[Tensor, "rows heads time seen"]:
        """The attention weights, in float32 at least; every row sums to 1, or does so with its head's sink."""
        query, key, _ = self.project(x, states, rotation)
        mask, dtype = self.add_scores(mask, query, key), torch.promote_types(query.dtype, torch.float32)
        query, key = query.to(dtype), key.to(dtype)
        return kernels.masked_attention_weights(query, key, mask, self.scale, self.softcap, self.sinks)

    def add_scores(self, mask: AttentionMask, query: Tensor, key: Tensor) -> AttentionMask:
        """The mask, with what this kind of attention adds to the scores of these queries and keys."""
        return mask

    def project(
        self, x: Tensor, states: Tensor | KeysValues | None = None, rotation: Rotation = UNROTATED
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Queries [batch, heads, queries, head_dim]; keys and values [batch, kv_heads, keys, head_dim]."""
        query = self._split(self.query(x), self.heads, self.query_norm)
        if isinstance(states, KeysValues):
            return query, states.keys, states.values
        key, value = self.keys_values(x if states is None else states)
        return *rotation.rotate(query, key), value

    def keys_values(self, states: Float[Tensor, "batch keys d_model"]) -> KeysValues:
        """Keys and values of hidden states."""
        key = self._split(self.key(states), self.kv_heads, self.key_norm)
        return KeysValues(key, self._split(self.value(states), self.kv_heads))

    def _split(
        self, x: Float[Tensor, "batch tokens width"], heads: int, norm: nn.Module | None = None
    ) -> Float[Tensor, "batch heads tokens head_dim"]:
        """The heads of each token, normalized one by one or together."""
        if norm is not None and self.qk_norm == "width":
            x = norm(x)
        x = x.unflatten(2, (heads, self.head_dim))
        if norm is not None and self.qk_norm == "head":
            x = norm(x)
        return x.transpose(1, 2)

    def _new_norm(self, heads: int, config: NormConfig) -> nn.Module:
        """The norm of the queries or the keys: an RMS norm, also beside layer norms."""
        if self.qk_norm == "none":
            return nn.Identity()
        kind = config.kind if config.kind.startswith("rms") else "rms"
        width = self.head_dim * (heads if self.qk_norm == "width" else 1)
        return norm(replace(config, kind=kind), width)
