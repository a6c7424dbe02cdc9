"""Transformer blocks in a row: an encoder or a decoder."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from anyformer import kernels
from anyformer.blocks.block import TransformerBlock
from anyformer.blocks.dropout import any_dropout
from anyformer.blocks.embedding import InputEmbedding
from anyformer.blocks.kv_cache import KeyValueCache
from anyformer.blocks.mask import Mask, attention_mask
from anyformer.blocks.ngrams import ngram_window
from anyformer.blocks.norm import norm
from anyformer.blocks.packing import UNPADDED, Packing
from anyformer.blocks.position import (
    PositionSize,
    lengths_of_documents,
    positional_encoding,
    positions_in_documents,
)
from anyformer.config import ModelConfig

_MOST_PACKED = 0.9
"""Share of a decoder's batch that is computed, at most, where it is packed: packing takes time as well."""


class Positions(NamedTuple):
    """Positions of the tokens that a stack reads."""

    queries: Int[Tensor, "#batch time"]
    """Of each token in its sequence."""
    keys: Int[Tensor, "1 keys"]
    """Of the tokens that it may attend to, those in the cache included."""
    encoded: Int[Tensor, "#batch tokens"]
    """What the positional encoding encodes: -1 for tokens that do not count, and anew for each document."""
    lengths: Int[Tensor, "#batch #tokens"]
    """Tokens of each sequence, or of the document around each token."""
    padding_mask: Bool[Tensor, "batch keys"] | None
    """False for keys that are padding."""
    packing: Packing = UNPADDED
    """How the tokens are packed, and with them what is encoded and the lengths."""


class Stack(nn.Module):
    """Blocks over one sequence: the encoder, or the decoder.

    Args:
        config: The model's config.
        causal: Tokens see only what came before: a decoder.
        cross: Each block attends to the encoder's output as well.
    """

    def __init__(self, config: ModelConfig, *, causal: bool, cross: bool) -> None:
        super().__init__()
        own = (config.decoder_attention, config.decoder_feed_forward) if cross else (None, None)
        attention, feed_forward = own[0] or config.attention, own[1] or config.feed_forward
        layers = config.decoder_layers if causal else config.encoder_layers
        head_dim = attention.head_dim or config.d_model // attention.heads
        self.causal, self.cross = causal, cross
        self.windows = [attention.window if layer >= attention.window_from else None for layer in range(layers)]
        self.kv_heads, self.head_dim = attention.kv_heads or attention.heads, head_dim
        self.context_length = config.context_length if config.position.kind in ("learned", "sinusoidal") else None
        self.skipped = config.embedding.padding if config.position.skip_padding else None
        self.embedding = InputEmbedding(config.embedding, config.norm, config.d_model)
        self.position = positional_encoding(
            config.position, PositionSize(config.d_model, attention.heads, head_dim, config.max_length, causal)
        )
        self.blocks = nn.ModuleList(
            TransformerBlock(
                attention,
                feed_forward,
                config.norm,
                config.d_model,
                layer=layer,
                cross=cross,
                dropout=config.dropout,
            )
            for layer in range(layers)
        )
        self.final_norm = norm(config.norm, config.d_model) if config.norm.has_final else nn.Identity()

    def forward(
        self,
        vectors: Float[Tensor, "batch time d_model"],
        tokens: Int[Tensor, "batch time"],
        *,
        mask: Bool[Tensor, "batch time"] | None = None,
        documents: Int[Tensor, "batch time"] | None = None,
        segments: Int[Tensor, "batch time"] | None = None,
        encoder_states: Float[Tensor, "batch source d_model"] | None = None,
        source_mask: Bool[Tensor, "batch source"] | None = None,
        cache: KeyValueCache | None = None,
        hidden_states: list[Tensor] | None = None,
        selected: Int[Tensor, " batch"] | None = None,
        needed: Bool[Tensor, "batch time"] | None = None,
    ) -> Float[Tensor, "batch selected d_model"]:
        """Pass a batch through all blocks, and the final norm.

        Args:
            vectors: The token embeddings.
            hidden_states: A list that gets the embeddings and every block's output, the last one after the final norm.
            selected: The position of each sequence whose output is needed: in the last block nothing is computed of
                the others but their keys and values. None: all are needed.
            needed: Where the output is needed; elsewhere it may be undefined. None: everywhere.

        The other arguments are those of `Transformer`.
        """
        packing = self._packing(tokens, mask, segments, needed) if cache is None and documents is None else UNPADDED
        positions = self._positions(tokens, mask, documents, cache, packing)
        packing = positions.packing
        extra = segments, self._ngram_window(tokens, positions, cache)
        segments, ngrams = (None if part is None else packing.pack(part) for part in extra)
        x = self.embedding(packing.pack(vectors), self.position.embed(positions.encoded), segments, ngrams)
        rotation = self.position.rotation(positions.encoded, positions.lengths)
        rotation = None if rotation is None else rotation.to(x.dtype)
        masks = self._masks(positions, documents)
        source = Mask(None if source_mask is None else source_mask[:, None, None, :], packing=packing)
        for layer, (block, window) in enumerate(zip(self.blocks, self.windows, strict=True)):
            if hidden_states is not None:
                hidden_states.append(packing.unpack(x))
            layer_cache = None if cache is None else cache.layers[layer]
            visible = masks[window]
            if selected is not None and layer == len(self.blocks) - 1:
                # From there on there is one token of each row, and no padding.
                source = source._replace(packing=UNPADDED)
                visible = visible.select(selected, positions.keys.shape[1])
            x = block(
                x,
                encoder_states,
                mask=visible,
                source_mask=source,
                rotation=rotation,
                cache=layer_cache,
            )
        x = self.final_norm(x)
        x = packing.unpack(x) if selected is None else x
        if hidden_states is not None:
            hidden_states.append(x)
        return x

    def _packing(self, tokens: Tensor, mask: Tensor | None, segments: Tensor | None, needed: Tensor | None) -> Packing:
        """What of a batch without documents is computed, if it is read without a cache."""
        if not kernels.skips_tokens(tokens.device):
            return UNPADDED
        if mask is not None:
            return Packing.of(mask) if 0 < int(mask.sum()) < mask.numel() else UNPADDED
        if not self.causal:
            return UNPADDED
        # A decoder's output depends on no token that follows.
        read = torch.ones_like(tokens, dtype=torch.bool) if needed is None else needed.flip(1).cummax(dim=1)[0].flip(1)
        alike = not self.cross and segments is None and not any_dropout(self)
        packing = Packing.of_prefixes(tokens, read) if alike else Packing.of(read)
        count = 0 if packing.places is None else len(packing.places)
        return packing if 0 < count < _MOST_PACKED * tokens.numel() else UNPADDED

    def _positions(
        self,
        tokens: Tensor,
        mask: Tensor | None,
        documents: Tensor | None,
        cache: KeyValueCache | None,
        packing: Packing,
    ) -> Positions:
        if cache is not None:
            queries, lengths, padding_mask, packing = cache.extend(tokens, mask)
            self._require_length(cache.length)
            keys = torch.arange(cache.length, device=tokens.device)[None]
            encoded, lengths = packing.pack(queries), packing.pack(lengths.expand(-1, tokens.shape[1]))
            return Positions(queries, keys, encoded, lengths, padding_mask, packing)
        keys = torch.arange(tokens.shape[1], device=tokens.device)[None]
        counted = mask if self.skipped is None else tokens != self.skipped
        if documents is not None:
            encoded = positions_in_documents(documents, counted)
            lengths = lengths_of_documents(documents, encoded)
        else:
            encoded = keys if counted is None else counted.cumsum(dim=1) * counted - 1
            lengths = encoded.amax(dim=1, keepdim=True) + 1
        # Reading a tensor makes an accelerator wait, and most sequences are short enough with all their padding.
        if self.context_length is not None and encoded.shape[1] > self.context_length:
            self._require_length(int(encoded.max()) + 1)
        if packing.places is None:
            return Positions(keys, keys, encoded, lengths, mask)
        encoded, lengths = packing.pack(encoded.expand_as(tokens)), packing.pack(lengths.expand_as(tokens))
        return Positions(keys, keys, encoded, lengths, mask, packing)

    def _masks(self, positions: Positions, documents: Tensor | None) -> dict[int | None, Mask]:
        """The mask for each window size."""
        bias = self.position.bias(positions.queries, positions.keys)
        return {
            window: attention_mask(
                positions.queries,
                positions.keys,
                causal=self.causal,
                window=window,
                padding_mask=positions.padding_mask,
                bias=bias,
                documents=documents,
            )._replace(packing=positions.packing)
            for window in set(self.windows)
        }

    def _ngram_window(self, tokens: Tensor, positions: Positions, cache: KeyValueCache | None) -> Tensor | None:
        if self.embedding.ngrams is None:
            return None
        count = self.embedding.ngrams.longest
        if cache is None:
            return ngram_window(tokens, positions.queries, positions.packing.unpack(positions.encoded), count)
        return ngram_window(cache.tokens, positions.queries, positions.queries, count)

    def _require_length(self, length: int) -> None:
        if self.context_length is not None and length > self.context_length:
            raise ValueError(f"the text has {length} tokens, and the model has positions for {self.context_length}")
