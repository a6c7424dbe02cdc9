"""Transformer blocks in a row: an encoder or a decoder."""

from typing import Any, NamedTuple, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from anyformer import kernels
from anyformer.blocks.block import TransformerBlock
from anyformer.blocks.embedding import InputEmbedding, ngram_window
from anyformer.blocks.experts import Experts, balance_loss
from anyformer.blocks.kv_cache import KeyValueCache
from anyformer.blocks.linear import any_dropout
from anyformer.blocks.mask import attention_mask
from anyformer.blocks.norm import norm
from anyformer.blocks.position import (
    PositionSize,
    lengths_of_documents,
    positional_encoding,
    positions_in_documents,
)
from anyformer.config import ModelConfig
from anyformer.kernels import DENSE, Layout, Mask


class Positions(NamedTuple):
    """Positions of the tokens that a stack reads."""

    queries: Int[Tensor, "#batch time"]
    """Position of each token in its sequence."""
    keys: Int[Tensor, "1 keys"]
    """Positions of the tokens that it may attend to, those in the cache included."""
    encoded: Int[Tensor, "#batch tokens"]
    """Positions that are encoded: -1 for tokens that do not count, and anew for each document."""
    lengths: Int[Tensor, "#batch #tokens"]
    """Tokens of each sequence, or of the document around each token."""
    padding_mask: Bool[Tensor, "batch keys"] | None
    """False for keys that are padding."""
    layout: Layout = DENSE
    """The layout of the tokens, of `encoded` and of `lengths`."""
    key_layout: Layout = DENSE
    """The layout of the keys: that of the tokens, unless they come from a cache."""


class Stack(nn.Module):
    """Blocks over one sequence: the encoder, or the decoder.

    Args:
        causal: Tokens see only what came before: a decoder.
        cross: Each block attends to the encoder's output as well.

    Attributes:
        cached: Heads of keys and values in a cache, the width of a key and that of a value.
    """

    def __init__(self, config: ModelConfig, *, causal: bool, cross: bool) -> None:
        super().__init__()
        own = (config.decoder_attention, config.decoder_feed_forward) if cross else (None, None)
        attention, feed_forward = own[0] or config.attention, own[1] or config.feed_forward
        layers = config.decoder_layers if causal else config.encoder_layers
        head_dim = attention.head_dim or config.d_model // attention.heads
        self.causal, self.cross = causal, cross
        others = config.others(layers)
        self.windows = [attention.window if other is None else other.window for other in others]
        self.head_dim, latent = head_dim, attention.latent
        self.cached = (attention.kv_heads or attention.heads, head_dim, head_dim)
        if latent is not None:
            self.cached, head_dim = (1, latent.rank + latent.rotary_dim, 0), latent.rotary_dim
        self.context_length = config.context_length if config.position.kind in ("learned", "sinusoidal") else None
        self.skipped = config.embedding.padding if config.position.skip_padding else None
        self.embedding = InputEmbedding(config.embedding, config.norm, config.d_model)
        width, distinct = config.embedding.width or config.d_model, min(layers, config.distinct_layers or layers)
        size = PositionSize(
            width, attention.heads, head_dim, config.max_length, causal, norm=config.norm, dropout=config.dropout
        )
        self.position = positional_encoding(config.position, size)
        other_position = config.other_layers and config.other_layers.position
        self.other_position = positional_encoding(other_position, size) if other_position else None
        self.has_other_position = [other is not None and other.position is not None for other in others]
        self.blocks = nn.ModuleList(
            TransformerBlock(
                attention,
                (other and other.feed_forward) or feed_forward,
                config.norm,
                config.d_model,
                layer=layer,
                cross=cross,
                dropout=config.dropout,
                residual_scale=config.residual_scale,
                disentangled=config.position.kind == "disentangled",
            )
            for layer, other in enumerate(others[:distinct])
        )
        self.final_norm = norm(config.norm, config.d_model) if config.norm.has_final else nn.Identity()

    def forward(
        self,
        vectors: Float[Tensor, "batch time width"],
        tokens: Int[Tensor, "batch time"],
        *,
        mask: Bool[Tensor, "batch time"] | None = None,
        documents: Int[Tensor, "batch time"] | None = None,
        segments: Int[Tensor, "batch time"] | None = None,
        encoder_states: Float[Tensor, "batch source d_model"] | None = None,
        source_mask: Bool[Tensor, "batch source"] | None = None,
        cache: KeyValueCache | None = None,
        hidden_states: list[Tensor] | None = None,
        query_index: Int[Tensor, " batch"] | None = None,
        needed: Bool[Tensor, "batch time"] | None = None,
    ) -> Float[Tensor, "batch queries d_model"]:
        """Pass a batch through all blocks, and the final norm.

        Args:
            vectors: The token embeddings.
            hidden_states: A list that gets the embeddings and every block's output but the last.
            query_index: The position of each sequence whose output is needed; None: all are.
            needed: Where the output is needed; elsewhere it may be undefined. None: everywhere.

        The other arguments are those of `Transformer`.
        """
        positions = self.positions(tokens, mask, documents, segments, needed, cache)
        with kernels.counting_tokens(len(tokens), positions.queries, positions.layout, training=self.training):
            x = self.embed(vectors, tokens, segments, positions, cache)
            inputs, layout = self._block_inputs(positions, documents, source_mask, query_index, cache, x.dtype)
            for block, block_inputs in zip(self.layers, inputs, strict=True):
                _keep(x, positions.layout, hidden_states)
                x = block(x, encoder_states, **block_inputs)
        return layout.scatter(self.final_norm(x))

    @property
    def layers(self) -> list[TransformerBlock]:
        """The block of each layer: one that several layers share comes as often (Lan et al. 2020, section 3.1)."""
        blocks, layers = cast("list[TransformerBlock]", [*self.blocks]), len(self.windows)
        return [blocks[layer * len(blocks) // layers] for layer in range(layers)]

    def positions(
        self,
        tokens: Tensor,
        mask: Tensor | None,
        documents: Tensor | None,
        segments: Tensor | None,
        needed: Tensor | None,
        cache: KeyValueCache | None,
    ) -> Positions:
        """Positions of a batch, with the arguments of `forward`; the cache, if there is one, gets its tokens."""
        if documents is not None and (cache is not None or self.cross):
            raise ValueError("documents are told apart only in a single stack without a cache")
        if cache is not None:
            new = cache.extend(tokens, mask)
            self._require_length(cache.length)
            keys, gather = torch.arange(cache.length, device=tokens.device)[None], new.layout.gather
            encoded = self.encoded_positions(new.positions, cache)
            lengths = new.lengths.expand_as(encoded)
            return Positions(new.positions, keys, gather(encoded), gather(lengths), new.padding_mask, new.layout)
        keys = torch.arange(tokens.shape[1], device=tokens.device)[None]
        counted = mask
        if self.skipped is not None:
            counted = tokens != self.skipped if mask is None else mask & (tokens != self.skipped)
        if documents is not None:
            encoded = positions_in_documents(documents, counted)
            lengths, layout = lengths_of_documents(documents, encoded), DENSE
        else:
            encoded = keys if counted is None else counted.cumsum(dim=1, dtype=torch.long) * counted - 1
            lengths = encoded.amax(dim=1, keepdim=True) + 1
            share_prefixes = not self.cross and segments is None and not any_dropout(self) and not self._balances()
            layout = kernels.choose_layout(tokens, mask, needed, causal=self.causal, share_prefixes=share_prefixes)
        # Reading a tensor makes an accelerator wait, and most sequences are short enough with all their padding.
        if self.context_length is not None and encoded.shape[1] > self.context_length:
            self._require_length(int(encoded.max()) + 1)
        if layout.indices is not None:
            encoded, lengths = (layout.gather(part.expand_as(tokens)) for part in (encoded, lengths))
        return Positions(keys, keys, encoded, lengths, mask, layout, layout)

    def encoded_positions(self, slots: Int[Tensor, "#batch new"], cache: KeyValueCache) -> Int[Tensor, "#batch new"]:
        """The positions that are encoded of tokens in these slots of a cache; -1 for those that do not count."""
        if self.skipped is None:
            return slots
        counted = cache.tokens[:, : cache.length] != self.skipped
        return (counted.cumsum(dim=1, dtype=torch.long) * counted - 1).gather(1, slots.expand(cache.batch, -1))

    def embed(
        self,
        vectors: Tensor,
        tokens: Tensor,
        segments: Tensor | None,
        positions: Positions,
        cache: KeyValueCache | None,
    ) -> Float[Tensor, "#batch tokens d_model"]:
        """The residual stream before the first block."""
        gather, window = positions.layout.gather, None
        if self.embedding.ngrams is not None:
            encoded, read = positions.layout.scatter(positions.encoded), tokens if cache is None else cache.tokens
            window = ngram_window(read, positions.queries, encoded, self.embedding.ngrams.longest)
        encoding = self.position.embed(positions.encoded)
        return self.embedding(gather(vectors), encoding, gather(segments), gather(window))

    def _block_inputs(
        self,
        positions: Positions,
        documents: Tensor | None,
        source_mask: Tensor | None,
        query_index: Tensor | None,
        cache: KeyValueCache | None,
        dtype: torch.dtype,
    ) -> tuple[list[dict[str, Any]], Layout]:
        """The inputs of each block, and the layout of the last one's output.

        Blocks differ by cache, window and positions, and the last one if a single token of each sequence is needed.
        """
        queries, keys, encoded, lengths, padding_mask, layout, key_layout = positions
        seen = {"padding_mask": padding_mask, "bias": self.position.bias(queries, keys), "documents": documents}
        relative = self.position.relative_vectors(queries, keys)
        masks = {
            window: attention_mask(queries, keys, causal=self.causal, window=window, **seen)._replace(relative=relative)
            for window in set(self.windows)
        }
        source = Mask(None if source_mask is None else source_mask[:, None, None, :])
        encodings = (self.position, self.other_position) if self.other_position is not None else (self.position,)
        rotations = [encoding.rotation(encoded, lengths).to(dtype) for encoding in encodings]
        shared = {"source_mask": kernels.with_layouts(source, layout)}
        caches = [None] * len(self.windows) if cache is None else cache.layers
        own = {window: kernels.with_layouts(mask, layout, key_layout) for window, mask in masks.items()}
        inputs: list[dict[str, Any]] = [
            {"mask": own[window], "rotation": rotations[other], "cache": layer_cache, **shared}
            for window, other, layer_cache in zip(self.windows, self.has_other_position, caches, strict=True)
        ]
        if query_index is None:
            return inputs, layout
        mask = kernels.select_query(masks[self.windows[-1]], query_index, keys.shape[1])
        row = layout.locate(query_index)
        rest = {"source_mask": source, "rotation": inputs[-1]["rotation"].select(row), "query_index": row}
        inputs[-1] |= {"mask": kernels.with_layouts(mask, DENSE, key_layout), **rest}
        return inputs, DENSE

    def balance_loss(self, mask: Bool[Tensor, "batch time"] | None) -> Float[Tensor, ""] | None:
        """The load-balancing loss of the latest batch with its factor; None: nothing is to be balanced."""
        experts = self._balances()
        routings = [part.routing for part in experts if part.routing is not None]
        for part in experts:
            part.routing = None
        return experts[0].balance * balance_loss(routings, mask) if routings else None

    def _balances(self) -> list[Experts]:
        """The mixtures of experts whose choices are balanced, by all tokens of a batch."""
        parts = [block.feed_forward for block in self.blocks]
        return [part for part in parts if self.training and isinstance(part, Experts) and part.balance]

    def _require_length(self, length: int) -> None:
        if self.context_length is not None and length > self.context_length:
            raise ValueError(f"the text has {length} tokens, and the model has positions for {self.context_length}")


def _keep(x: Tensor, layout: Layout, hidden_states: list[Tensor] | None) -> None:
    if hidden_states is not None:
        hidden_states.append(layout.scatter(x))
