"""The transformer: embeddings, an encoder or none, a decoder or none, a head.

Shapes, here and everywhere::

    batch    texts                          d_model  width of the residual stream
    time     tokens of each text            heads, kv_heads, head_dim
    source   tokens of each source text     vocab    number of tokens known
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float, Int, Num
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint

from anyformer.blocks.block import TransformerBlock, norm
from anyformer.blocks.documents import lengths_of_documents, positions_in_documents
from anyformer.blocks.embedding import InputEmbedding, TokenEmbedding
from anyformer.blocks.head import Classifier, LanguageModelHead, Pooler, loss
from anyformer.blocks.initialization import initialize
from anyformer.blocks.kv_cache import KeyValueCache
from anyformer.blocks.mask import Mask, attention_mask
from anyformer.blocks.ngrams import latest
from anyformer.blocks.position import PositionSize, Rotation, positional_encoding
from anyformer.config import ModelConfig
from anyformer.errors import UserError


@dataclass
class ModelOutput:
    """What a model says about a batch."""

    logits: Float[Tensor, "batch scored vocab"] | Float[Tensor, "batch labels"] | None
    """The head's scores, of every place or the last alone; None where the model has no head, or they are left out."""
    hidden: Float[Tensor, "batch time d_model"]
    """The last hidden states: after the final norm, before the head."""
    loss: Float[Tensor, ""] | None = None
    """Mean loss in nats over the targets, where there are any."""
    pooled: Float[Tensor, "batch d_model"] | None = None
    """The pooler's output, where the model has one."""
    hidden_states: tuple[Float[Tensor, "batch time d_model"], ...] | None = None
    """If asked for: the embeddings, then every block's output, the last one after the final norm."""
    source_hidden_states: tuple[Float[Tensor, "batch source d_model"], ...] | None = None
    """The same of an encoder-decoder's encoder."""


@dataclass(frozen=True)
class Origin:
    """What a loaded model came with that no block needs, kept so that it can be written back."""

    config: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Its config.json, as it was."""
    generation: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Its generation_config.json: forced tokens, banned tokens, lengths."""


class Stack(nn.Module):
    """A column of blocks over one sequence: the encoder, or the decoder.

    Args:
        config: The model's config.
        causal: Tokens see only what came before: a decoder.
        cross: Each block looks at the encoder's output as well.
    """

    def __init__(self, config: ModelConfig, *, causal: bool, cross: bool) -> None:
        super().__init__()
        own = (config.decoder_attention, config.decoder_feed_forward) if cross else (None, None)
        attention, feed_forward = own[0] or config.attention, own[1] or config.feed_forward
        layers = config.decoder_layers if causal else config.encoder_layers
        head_dim = attention.head_dim or config.d_model // attention.heads
        self.causal = causal
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
        self.final_norm = norm(config.norm, config.d_model) if config.norm.placement == "pre" else nn.Identity()
        self.checkpoint_gradients = False
        """Compute what is inside a block again on the way back, instead of keeping it (Chen et al. 2016)."""

    def forward(
        self,
        vectors: Float[Tensor, "batch time d_model"],
        tokens: Int[Tensor, "batch time"],
        *,
        mask: Bool[Tensor, "batch time"] | None = None,
        documents: Int[Tensor, "batch time"] | None = None,
        segments: Int[Tensor, "batch time"] | None = None,
        source: Float[Tensor, "batch source d_model"] | None = None,
        source_mask: Bool[Tensor, "batch source"] | None = None,
        cache: KeyValueCache | None = None,
    ) -> list[Float[Tensor, "batch time d_model"]]:
        """Pass a batch through all blocks.

        Returns:
            The embeddings and every block's output; the last one after the final norm.
        """
        if cache is None:
            keys = new = torch.arange(tokens.shape[1], device=tokens.device)[None]
            positions, real = self._positions(tokens, mask, new, documents), mask
            if documents is None:
                lengths = positions.amax(dim=1, keepdim=True) + 1
            else:
                lengths = lengths_of_documents(documents, positions)
        else:
            new, lengths, real = cache.extend(tokens, mask)
            keys = torch.arange(cache.length, device=tokens.device)[None]
            positions = new if mask is None or real is None else new.masked_fill(~mask, -1)
            self._require_positions(cache.length)
        recent = None
        if self.embedding.ngrams is not None:
            known, places = (tokens, positions) if cache is None else (cache.tokens, new)
            recent = latest(known, new, places, self.embedding.ngrams.longest)
        x = self.embedding(vectors, self.position.embed(positions), segments, recent)
        rotation = self.position.rotation(positions, lengths)
        if rotation is not None:
            rotation = Rotation(rotation.cos.to(x.dtype), rotation.sin.to(x.dtype))
        bias = self.position.bias(new, keys)
        seen = {
            window: attention_mask(
                new,
                keys,
                causal=self.causal,
                window=window,
                real=real,
                bias=bias,
                documents=documents,
            )
            for window in set(self.windows)
        }
        seen_source = Mask() if source_mask is None else Mask(source_mask[:, None, None, :])
        states = [x]
        for layer, (block, window) in enumerate(zip(self.blocks, self.windows, strict=True)):
            pass_through = partial(
                block,
                mask=seen[window],
                source_mask=seen_source,
                rotation=rotation,
                cache=None if cache is None else cache.layers[layer],
            )
            if self.checkpoint_gradients and torch.is_grad_enabled():
                x = checkpoint(pass_through, x, source, use_reentrant=False)
            else:
                x = pass_through(x, source)
            states.append(x)
        states[-1] = self.final_norm(states[-1])
        return states

    def _positions(self, tokens: Tensor, mask: Tensor | None, where: Tensor, documents: Tensor | None) -> Tensor:
        """The place of every token among the real ones of its document; -1 for those that do not count."""
        counts = mask if self.skipped is None else tokens != self.skipped
        if documents is not None:
            positions = positions_in_documents(documents, counts)
        elif counts is not None:
            positions = (counts.cumsum(dim=1) * counts) - 1
        else:
            positions = where
        # Asking a tensor makes an accelerator wait, and most texts are short enough with all their padding.
        if self.context_length is not None and positions.shape[1] > self.context_length:
            self._require_positions(int(positions.max()) + 1)
        return positions

    def _require_positions(self, length: int) -> None:
        if self.context_length is not None and length > self.context_length:
            raise ValueError(f"the text has {length} tokens, and the model has positions for {self.context_length}")


class Transformer(nn.Module):
    """Any transformer: decoder-only, encoder-only or encoder-decoder, as its config says.

    Fresh weights are drawn as the family's paper does (see docs/initialization.md).
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.origin = Origin()
        self.tokens = TokenEmbedding(config.embedding, config.vocab_size, config.d_model)
        self.source_tokens = (
            TokenEmbedding(config.embedding, config.source_vocab_size, config.d_model)
            if config.source_vocab_size is not None
            else None
        )
        self.encoder = Stack(config, causal=False, cross=False) if config.encoder_layers else None
        self.decoder = Stack(config, causal=True, cross=config.encoder_layers > 0) if config.decoder_layers else None
        head = config.head
        self.pooler = Pooler(head.pooler, config.d_model) if head.pooler else None
        self.head = (
            LanguageModelHead(head, config.norm, config.d_model, config.vocab_size, tied=config.embedding.tied)
            if head.kind == "language_model"
            else Classifier(head, config.d_model)
            if head.kind in ("classification", "token_classification")
            else None
        )
        initialize(self, config)

    def forward(
        self,
        tokens: Int[Tensor, "batch time"],
        source: Int[Tensor, "batch source"] | None = None,
        segments: Int[Tensor, "batch time"] | None = None,
        mask: Bool[Tensor, "batch time"] | None = None,
        source_mask: Bool[Tensor, "batch source"] | None = None,
        documents: Int[Tensor, "batch time"] | None = None,
        targets: Num[Tensor, "batch time"] | Num[Tensor, " batch"] | None = None,
        return_hidden: bool = False,
        cache: KeyValueCache | None = None,
        last_only: bool = False,
        return_logits: bool = True,
        label_smoothing: float = 0.0,
    ) -> ModelOutput:
        """Read a batch of texts.

        Args:
            tokens: Token ids: what an encoder reads, or what a decoder has written so far.
            source: Encoder-decoders: token ids of what the encoder reads. May be left out once the cache knows it.
            segments: Segment ids, where the model has segments; None: all 0.
            mask: True for a real token, False for padding (on the left or the right); None: all are real.
            source_mask: The same for the source.
            documents: Single stacks: which document of its row each token belongs to, a number for each stretch of
                tokens. Attention and positions begin anew with each. None: a row is one text.
            targets: What each position should answer (for a language model the token that comes next), aligned with
                the logits; -100 is ignored.
            return_hidden: Keep the hidden states of every layer.
            cache: Memory of what the decoder has read; `tokens` go on from there.
            last_only: Compute the logits of each text's last place alone, which is all that generation needs.
            return_logits: False leaves them out, and the loss of a language model is then computed without ever
                holding all of them (see `kernels.cross_entropy`).
            label_smoothing: Share of each target that is spread over the vocabulary.

        Raises:
            ValueError: a text longer than the model's positions, a missing source, a full cache, documents in a
                cache or beside a source.
        """
        if documents is not None and (cache is not None or (self.encoder is not None and self.decoder is not None)):
            raise ValueError("documents are told apart only in a single stack without a cache")
        source_states = None
        if self.encoder is not None and self.decoder is not None:
            if source is not None:
                source_states = self.encode(source, source_mask)
                if cache is not None:
                    cache.source_mask = source_mask
            elif cache is None or cache.layers[0].source is None:
                raise ValueError("an encoder-decoder needs a source: model(tokens, source=...)")
            states = self.decoder(
                self.tokens(tokens),
                tokens,
                mask=mask,
                segments=segments,
                source=None if source_states is None else source_states[-1],
                source_mask=source_mask if cache is None else cache.source_mask,
                cache=cache,
            )
        else:
            stack = self.encoder or self.decoder
            if stack is None or source is not None:
                raise ValueError("only an encoder-decoder reads a source")
            states = stack(self.tokens(tokens), tokens, mask=mask, documents=documents, segments=segments, cache=cache)
        hidden = states[-1]
        pooled = None if self.pooler is None else self.pooler(hidden, mask)
        if not return_logits and targets is not None and isinstance(self.head, LanguageModelHead):
            logits = None
            mean = self.head.loss(hidden, targets, self.tokens.matrix, label_smoothing=label_smoothing)
        else:
            logits = self._logits(hidden[:, -1:] if last_only else hidden, pooled)
            mean = None if targets is None or logits is None else loss(logits, targets, label_smoothing)
        return ModelOutput(
            logits=logits,
            hidden=hidden,
            loss=mean,
            pooled=pooled,
            hidden_states=tuple(states) if return_hidden else None,
            source_hidden_states=tuple(source_states) if return_hidden and source_states is not None else None,
        )

    def encode(
        self, source: Int[Tensor, "batch source"], source_mask: Bool[Tensor, "batch source"] | None = None
    ) -> list[Float[Tensor, "batch source d_model"]]:
        """The hidden states of an encoder-decoder's encoder: embeddings first, the last one after the final norm."""
        if self.encoder is None:
            raise ValueError("the model has no encoder")
        table = self.tokens if self.source_tokens is None else self.source_tokens
        return self.encoder(table(source), source, mask=source_mask)

    @property
    def dtype(self) -> torch.dtype:
        """The format that it computes in, which is that of the weights unless they are integers."""
        return self.tokens.matrix.dtype

    @property
    def device(self) -> torch.device:
        """Where it is."""
        return self.tokens.matrix.device

    def make_cache(self, batch: int, capacity: int) -> KeyValueCache:
        """An empty memory for a batch of texts of at most `capacity` tokens, where the model is and in its format."""
        if self.decoder is None:
            raise ValueError("only a decoder reads token by token")
        return KeyValueCache(
            layers=len(self.decoder.blocks),
            batch=batch,
            kv_heads=self.decoder.kv_heads,
            capacity=capacity,
            head_dim=self.decoder.head_dim,
            device=self.device,
            dtype=self.dtype,
        )

    def _logits(self, hidden: Tensor, pooled: Tensor | None) -> Tensor | None:
        if isinstance(self.head, LanguageModelHead):
            return self.head(hidden, self.tokens.matrix)
        if isinstance(self.head, Classifier):
            return self.head(hidden if pooled is None else pooled)
        return None


def build(config: ModelConfig) -> Transformer:
    """A fresh model: weights drawn as the family's paper does, in training mode. Seed them with `torch.manual_seed`."""
    return Transformer(config)


class _Undrawn(TorchFunctionMode):
    """Leaves weights as they are. On the meta device drawing them would do nothing but import the compiler for it."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = kwargs or {}
        if func.__name__ in ("normal_", "uniform_", "kaiming_uniform_", "xavier_uniform_", "trunc_normal_"):
            return args[0] if args else given["tensor"]
        return func(*args, **given)


def skeleton(config: ModelConfig) -> Transformer:
    """A model whose weights have shapes but no storage: to be counted, or filled from a file.

    Raises UserError for sizes whose product is no number of bytes.
    """
    try:
        with torch.device("meta"), _Undrawn():
            return Transformer(config)
    except (RuntimeError, OverflowError) as error:  # torch counts bytes in 64 bits
        raise UserError(f"No machine has room for a model of these sizes: {str(error).splitlines()[0]}.") from error
