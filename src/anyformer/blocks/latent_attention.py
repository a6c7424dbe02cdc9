"""Multi-head latent attention (DeepSeek-AI 2024, 2405.04434, section 2.1)."""

from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from anyformer import kernels
from anyformer.blocks.attention import ALL_VISIBLE, UNROTATED
from anyformer.blocks.kv_cache import LayerCache
from anyformer.blocks.linear import Dropout, Linear
from anyformer.blocks.norm import RMSNorm
from anyformer.blocks.position import Rotation
from anyformer.config import AttentionConfig
from anyformer.kernels import AttentionMask

EPS = 1e-6
"""Epsilon of the norms inside, whatever that of the model's is (DeepSeek's code)."""


class LatentAttention(nn.Module):
    """Attention whose keys and values are made of one narrow vector for each token, the latent, which is all that a
    cache holds::

        latent_t = norm(D x_t)              [rank]          r_t = rotate(R x_t)      [rotary_dim], for all heads
        key_t    = [U_k latent_t; r_t]      of each head    value_t = U_v latent_t   of each head
        query_t  = [Q x_t; rotate(Q_r x_t)] of each head, where Q may have a latent of its own

    (equations 9 to 19 of the paper). A single new token is compared with the latents themselves, as ``q . U_k latent``
    is ``U_k^T q . latent``, and U_v is applied to their mean: no key or value of an earlier token is computed again.
    """

    def __init__(self, config: AttentionConfig, d_model: int) -> None:
        super().__init__()
        latent, head_dim = config.latent, config.head_dim or d_model // config.heads
        assert latent is not None
        self.heads, self.head_dim, self.value_dim = config.heads, head_dim, latent.value_dim
        self.rank, self.rotary_dim = latent.rank, latent.rotary_dim
        self.scale = head_dim**-0.5 if config.scale is None else config.scale
        self.dropout = Dropout(config.dropout)
        query_rank, queries = latent.query_rank, self.heads * head_dim
        self.query_down = Linear(d_model, query_rank, bias=config.bias) if query_rank else nn.Identity()
        self.query_norm = RMSNorm(query_rank, EPS) if query_rank else nn.Identity()
        self.query = Linear(query_rank or d_model, queries, bias=False)
        self.latent_down = Linear(d_model, self.rank + self.rotary_dim, bias=config.bias)
        self.latent_norm = RMSNorm(self.rank, EPS)
        self.latent_up = Linear(self.rank, self.heads * (head_dim - self.rotary_dim + self.value_dim), bias=False)
        self.output = Linear(self.heads * self.value_dim, d_model, bias=config.output_bias)

    def forward(
        self,
        x: Float[Tensor, "#batch queries d_model"],
        states: Float[Tensor, "#batch keys d_model"] | None = None,
        *,
        mask: AttentionMask = ALL_VISIBLE,
        rotation: Rotation = UNROTATED,
        cache: LayerCache | None = None,
    ) -> Float[Tensor, "#batch queries d_model"]:
        """Attend from each token of x to each of x, or of states that x is some of; see `MultiHeadAttention`."""
        query, latent = self.project(x, states, rotation)
        if cache is not None:
            latent, _ = cache.update(latent, latent[..., :0])
        is_plain = self.latent_up.adapters is None and isinstance(cast("object", self.latent_up.weight), Tensor)
        attend = self._attend_to_latents if cache is not None and x.shape[1] == 1 and is_plain else self._attend
        out = attend(query, latent, mask)
        return self.output(out.transpose(1, 2).flatten(2))

    def weights(
        self,
        x: Float[Tensor, "#batch queries d_model"],
        states: Float[Tensor, "#batch keys d_model"] | None = None,
        *,
        mask: AttentionMask = ALL_VISIBLE,
        rotation: Rotation = UNROTATED,
    ) -> Float[Tensor, "rows heads time seen"]:
        """The attention weights, in float32 at least; every row sums to 1."""
        query, latent = self.project(x, states, rotation)
        key, _ = self.expand(latent)
        dtype = torch.promote_types(query.dtype, torch.float32)
        return kernels.masked_attention_weights(query.to(dtype), key.to(dtype), mask, self.scale)

    def project(self, x: Tensor, states: Tensor | None = None, rotation: Rotation = UNROTATED) -> tuple[Tensor, Tensor]:
        """Queries [batch, heads, queries, head_dim]; latents and the rotated part of the keys behind them, [batch, 1,
        keys, rank + rotary_dim]."""
        query = self.query(self.query_norm(self.query_down(x))).unflatten(2, (self.heads, self.head_dim))
        plain, turned = query.transpose(1, 2).split([self.head_dim - self.rotary_dim, self.rotary_dim], dim=-1)
        latent, shared = self.latent_down(x if states is None else states).split([self.rank, self.rotary_dim], dim=-1)
        turned, shared = rotation.rotate(turned, shared[:, None])
        return torch.cat((plain, turned), dim=-1), torch.cat((self.latent_norm(latent)[:, None], shared), dim=-1)

    def expand(
        self, latent: Float[Tensor, "batch 1 keys width"]
    ) -> tuple[Float[Tensor, "batch heads keys head_dim"], Float[Tensor, "batch heads keys value_dim"]]:
        """The keys and values of all heads."""
        latent, shared = latent.split([self.rank, self.rotary_dim], dim=-1)
        widths = [self.head_dim - self.rotary_dim, self.value_dim]
        both = self.latent_up(latent.squeeze(1)).unflatten(2, (self.heads, sum(widths))).transpose(1, 2)
        key, value = both.split(widths, dim=-1)
        return torch.cat((key, shared.expand(-1, self.heads, -1, -1)), dim=-1), value

    def _attend(self, query: Tensor, latent: Tensor, mask: AttentionMask) -> Tensor:
        key, value = self.expand(latent)
        return kernels.masked_attention(query, key, value, mask, self.dropout.rate, self.scale)

    def _attend_to_latents(self, query: Tensor, latent: Tensor, mask: AttentionMask) -> Tensor:
        """Attend to the latents, one key and value of all heads: U_k is applied to the queries, U_v to the means."""
        widths = [self.head_dim - self.rotary_dim, self.value_dim]
        up = self.latent_up.weight.unflatten(0, (self.heads, sum(widths)))
        to_key, to_value = up.split(widths, dim=1)
        plain, turned = query.split([widths[0], self.rotary_dim], dim=-1)
        query = torch.cat((plain @ to_key, turned), dim=-1)
        out = kernels.masked_attention(query, latent, latent[..., : self.rank], mask, self.dropout.rate, self.scale)
        return out @ to_value.transpose(1, 2)
