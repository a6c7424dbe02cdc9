"""Multi-head attention, for self- and cross-attention, causal or not, cached or not."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from anyformer.blocks.dropout import Dropout
from anyformer.blocks.kv_cache import KeysValues, LayerCache
from anyformer.blocks.mask import Mask
from anyformer.blocks.norm import RMSNorm
from anyformer.blocks.position import Rotation
from anyformer.config import AttentionConfig
from anyformer.kernels.cpu.attention import attention, can_attend
from anyformer.kernels.piecewise_attention import pays, piecewise_attention

ALL_VISIBLE = Mask()


class MultiHeadAttention(nn.Module):
    """``softmax(q k^T / sqrt(head_dim)) v`` in several heads (Vaswani et al. 2017, equation 1 and section 3.2.2).

    With fewer key/value heads than query heads, each is shared by a group of them (Ainslie et al. 2023).

    Args:
        config: Heads and their kind.
        d_model: Width of what comes in and goes out.
        layer: The number of this layer, for what varies with it.
        norm_eps: Epsilon of the norms on queries and keys, where the config wants them.
    """

    def __init__(
        self,
        config: AttentionConfig,
        d_model: int,
        *,
        layer: int = 0,
        norm_eps: float = 1e-6,
    ) -> None:
        super().__init__()
        self.heads = config.heads
        self.kv_heads = config.kv_heads or config.heads
        self.head_dim = config.head_dim or d_model // config.heads
        self.scale = self.head_dim**-0.5 if config.scale is None else config.scale
        if config.scale_by_layer:
            self.scale /= layer + 1
        self.dropout = Dropout(config.dropout)
        self.query = nn.Linear(d_model, self.heads * self.head_dim, bias=config.bias)
        self.key = nn.Linear(d_model, self.kv_heads * self.head_dim, bias=config.bias)
        self.value = nn.Linear(d_model, self.kv_heads * self.head_dim, bias=config.bias)
        self.output = nn.Linear(self.heads * self.head_dim, d_model, bias=config.output_bias)
        self.query_norm = RMSNorm(self.head_dim, norm_eps) if config.qk_norm else nn.Identity()
        self.key_norm = RMSNorm(self.head_dim, norm_eps) if config.qk_norm else nn.Identity()

    def forward(
        self,
        x: Float[Tensor, "batch queries d_model"],
        source: Float[Tensor, "batch keys d_model"] | KeysValues | None = None,
        *,
        mask: Mask = ALL_VISIBLE,
        rotation: Rotation | None = None,
        cache: LayerCache | None = None,
    ) -> Float[Tensor, "batch queries d_model"]:
        """Let each token of x look at x, or at a source.

        Args:
            x: What asks.
            source: What is looked at in cross-attention (or its keys and values, made earlier); None: x itself.
            mask: Who may look at whom.
            rotation: How queries and keys turn.
            cache: What x's stack has read before, to which the keys and values of x are added.
        """
        query, key, value = self._operands(x, source, rotation, cache)
        if self.training and self.dropout.p > 0 and query.device.type == "cpu":
            # On CPUs the fused kernel knows no dropout, and what torch takes instead is slower than this.
            mixed = self.dropout(self._weights(query, key, mask)) @ self._for_each_head(value)
        elif query.requires_grad and can_attend(query, mask):
            mixed = attention(query, key, value, self.scale, mask)
        elif pays(query, key, mask):
            mixed = piecewise_attention(query, self._for_each_head(key), self._for_each_head(value), self.scale, mask)
        else:
            mixed = F.scaled_dot_product_attention(
                query,
                key,
                value,
                attn_mask=mask.scores,
                is_causal=mask.causal,
                dropout_p=self.dropout.p if self.training else 0.0,
                scale=self.scale,
                enable_gqa=self.heads != self.kv_heads,
            )
        return self.output(mixed.transpose(1, 2).flatten(2))

    def weights(
        self,
        x: Float[Tensor, "batch queries d_model"],
        source: Float[Tensor, "batch keys d_model"] | KeysValues | None = None,
        *,
        mask: Mask = ALL_VISIBLE,
        rotation: Rotation | None = None,
    ) -> Float[Tensor, "batch heads queries keys"]:
        """How much each token looks at each other one, written out for pictures; every row sums to 1."""
        query, key, _ = self._operands(x, source, rotation, None)
        return self._weights(query, key, mask)

    def _weights(self, query: Tensor, key: Tensor, mask: Mask) -> Tensor:
        scores = (query * self.scale) @ self._for_each_head(key).transpose(2, 3)
        if mask.causal:
            future = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
            scores = scores.masked_fill(future, -torch.inf)
        if mask.scores is not None:
            hides = mask.scores.dtype == torch.bool
            scores = scores.masked_fill(~mask.scores, -torch.inf) if hides else scores + mask.scores
        return scores.softmax(dim=-1)

    def _for_each_head(self, keys: Tensor) -> Tensor:
        """Keys or values for each query head, where several share one."""
        return keys if self.kv_heads == self.heads else keys.repeat_interleave(self.heads // self.kv_heads, dim=1)

    def keys_values(self, source: Float[Tensor, "batch keys d_model"]) -> KeysValues:
        """What there is to look at in a source, and what is seen there."""
        key = self.key_norm(self.key(source).unflatten(2, (self.kv_heads, self.head_dim)))
        value = self.value(source).unflatten(2, (self.kv_heads, self.head_dim))
        return KeysValues(key.transpose(1, 2), value.transpose(1, 2))

    def _operands(
        self, x: Tensor, source: Tensor | KeysValues | None, rotation: Rotation | None, cache: LayerCache | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        query = self.query_norm(self.query(x).unflatten(2, (self.heads, self.head_dim))).transpose(1, 2)
        if isinstance(source, KeysValues):
            return query, source.keys, source.values
        key, value = self.keys_values(x if source is None else source)
        if rotation is not None:
            query, key = rotation(query), rotation(key)
        if cache is not None:
            key, value = cache.append(key, value)
        return query, key, value
