"""The transformer: embeddings, an encoder or none, a decoder or none, a head.

Shapes, here and everywhere::

    batch    sequences                          d_model  width of the residual stream
    time     tokens of each sequence            heads, kv_heads, head_dim
    source   tokens of each source sequence     vocab    number of tokens known
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, Num
from torch import Tensor, nn

from anyformer.blocks.embedding import TokenEmbedding
from anyformer.blocks.head import IGNORED, Classifier, LanguageModelHead, Pooler, loss
from anyformer.blocks.initialization import Cut, initialize_pieces, initialize_weights, kept_in_pieces
from anyformer.blocks.kv_cache import KeyValueCache
from anyformer.blocks.pooling import TextPooling, last_token
from anyformer.blocks.stack import Stack
from anyformer.config import ModelConfig
from anyformer.errors import UserError
from anyformer.one_line import OneLine


@dataclass(repr=False)
class ModelOutput(OneLine):
    """The output of a model."""

    logits: Float[Tensor, "batch scored vocab"] | Float[Tensor, "batch labels"] | None
    """The head's scores, of every position or the last alone; None without a head, or where they are left out."""
    hidden: Float[Tensor, "batch queries d_model"]
    """The last hidden states: after the final norm, before the head. Of every position, or of the last or the pooled
    one alone."""
    loss: Float[Tensor, ""] | None = None
    """Mean loss in nats over the targets, where there are any; in training with the load-balancing loss of experts."""
    pooled: Float[Tensor, "batch d_model"] | None = None
    """The pooler's output, where the model has one."""
    hidden_states: tuple[Float[Tensor, "batch time d_model"], ...] | None = None
    """If asked for: the embeddings, then every block's output, the last one after the final norm."""
    source_hidden_states: tuple[Float[Tensor, "batch source d_model"], ...] | None = None
    """`hidden_states` of an encoder-decoder's encoder."""


@dataclass(frozen=True)
class Origin:
    """Contents of a loaded model that no block needs, kept so that they can be written back."""

    config: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Its config.json, as it was."""
    generation: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Its generation_config.json: forced tokens, banned tokens, lengths."""
    drawn: frozenset[str] = frozenset()
    """Names of the weights that it came without, and that were drawn."""
    paths: tuple[Path, ...] = ()
    """Where it and its adapters were loaded from, as they were given."""


class Transformer(nn.Module):
    """Any transformer: decoder-only, encoder-only or encoder-decoder, as its config says.

    Args:
        initialize: Draw the weights as the family's paper does (see docs/initialization.md).
    """

    def __init__(self, config: ModelConfig, *, initialize: bool = True) -> None:
        super().__init__()
        self.config = config
        self.origin = Origin()
        self.adapter_configs: dict[str, Any] = {}
        d_model, source_vocab = config.d_model, config.source_vocab_size
        self.token_embedding = TokenEmbedding(config.embedding, config.vocab_size, d_model)
        self.source_embedding = TokenEmbedding(config.embedding, source_vocab, d_model) if source_vocab else None
        self.encoder = Stack(config, causal=False, cross=False) if config.encoder_layers else None
        self.decoder = Stack(config, causal=True, cross=config.encoder_layers > 0) if config.decoder_layers else None
        self.pooler = new_pooler(config)
        self.pooling = TextPooling(config.pooling, d_model)
        self.head = new_head(config)
        if initialize:
            initialize_weights(self, config)

    def forward(
        self,
        tokens: Int[Tensor, "batch time"],
        source: Int[Tensor, "batch source"] | None = None,
        segments: Int[Tensor, "batch time"] | None = None,
        mask: Bool[Tensor, "batch time"] | None = None,
        source_mask: Bool[Tensor, "batch source"] | None = None,
        documents: Int[Tensor, "batch time"] | None = None,
        targets: Num[Tensor, "batch time"] | Num[Tensor, " batch"] | Num[Tensor, "batch labels"] | None = None,
        return_hidden: bool = False,
        cache: KeyValueCache | None = None,
        last_only: bool = False,
        pooled_only: bool = False,
        return_logits: bool = True,
        label_smoothing: float = 0.0,
        needed: Bool[Tensor, "batch time"] | None = None,
    ) -> ModelOutput:
        """Pass a batch through the model.

        Args:
            tokens: Token ids: the input of an encoder, or what a decoder has generated so far.
            source: Encoder-decoders: token ids of what the encoder reads. May be left out once the cache knows it, and
                by a classifier, both of whose stacks then read `tokens`: the decoder one place later, after its start
                token (Lewis et al. 2020, section 3.2).
            segments: Segment ids, where the model has segments; None: all 0.
            mask: True for a real token, False for padding (on the left or the right), for which what is returned is
                undefined; None: all are real.
            source_mask: The same for the source.
            documents: Single stacks: which document of its row each token belongs to, a number for each stretch of
                tokens. Attention and positions begin anew with each. None: a row is one text.
            targets: The right answer at each position (for a language model the next token), aligned with the logits;
                for a classifier of texts a class or number each, or 0 or 1 for each label; -100 is ignored.
            return_hidden: Keep the hidden states of every layer.
            cache: Keys and values of what the decoder has read; `tokens` continue it.
            last_only: Compute the logits of the last position alone, which is all that generation needs.
            pooled_only: Of a classifier of texts, compute the last hidden state of the token alone that is pooled.
            return_logits: False leaves them out, unless a classifier's loss needs them; a language model's is computed
                without ever holding all of them (see `kernels.linear_cross_entropy`).
            label_smoothing: Share of each target that is spread over the vocabulary, or the classes.
            needed: Where the last hidden state, and the logits, are needed; elsewhere they may be undefined. None:
                everywhere, or where there is a target if the loss of a language model is computed without logits.

        Raises:
            UserError: tokens, a mask or targets of another shape or dtype.
            ValueError: a text longer than the model's positions, a missing source, a full cache, documents in a
                cache or beside a source.
        """
        self._check_inputs(tokens, mask, source, source_mask, targets)
        if source is None and self.config.is_encoder_decoder and self.config.head.kind == "classification":
            source, source_mask, tokens = tokens, mask, self._shift_right(tokens, mask)
        states, source_states = ([], []) if return_hidden else (None, None)
        encoder_states = self._encoder_states(source, source_mask, cache, source_states)
        query_index = None if return_hidden else self._query_index(tokens, mask, last_only, pooled_only)
        is_language_model = isinstance(self.head, LanguageModelHead)
        if needed is None and targets is not None and is_language_model and not return_hidden and not return_logits:
            needed = targets != IGNORED
        hidden = self._last_stack(
            self.token_embedding(tokens),
            tokens,
            mask=mask,
            documents=documents,
            segments=segments,
            encoder_states=encoder_states,
            source_mask=source_mask if cache is None else cache.source_mask,
            cache=cache,
            hidden_states=states,
            query_index=query_index,
            needed=needed,
        )
        pooled = None if self.pooler is None else self.pooler(hidden, mask if query_index is None else None)
        scored = hidden[:, -1:] if last_only and return_logits else hidden
        logits, mean = self._score(scored, pooled, targets, return_logits, label_smoothing)
        mean = self._balanced(mean, mask, source_mask)
        stacks: tuple[Any, ...] = (states, hidden), (source_states, encoder_states)
        kept = [(*before, last) if before else None for before, last in stacks]
        return ModelOutput(logits, hidden, mean, pooled, *kept)

    def encode(
        self,
        source: Int[Tensor, "batch source"],
        source_mask: Bool[Tensor, "batch source"] | None = None,
        *,
        hidden_states: list[Tensor] | None = None,
    ) -> Float[Tensor, "batch source d_model"]:
        """The output of an encoder-decoder's encoder; `hidden_states` as in `Stack.forward`."""
        if self.encoder is None:
            raise ValueError("the model has no encoder")
        embedding = self.token_embedding if self.source_embedding is None else self.source_embedding
        return self.encoder(embedding(source), source, mask=source_mask, hidden_states=hidden_states)

    def encode_text(
        self, tokens: Int[Tensor, "batch time"], mask: Bool[Tensor, "batch time"] | None = None
    ) -> Float[Tensor, "batch time d_model"]:
        """The last hidden states of texts, of which `config.pooling` makes vectors: the encoder's, if there is one."""
        if self.decoder is None or self.encoder is not None:
            return self.encode(tokens, mask)
        return self.decoder(self.token_embedding(tokens), tokens, mask=mask)

    def embed_text(
        self, tokens: Int[Tensor, "batch time"], mask: Bool[Tensor, "batch time"] | None = None
    ) -> Float[Tensor, "batch width"]:
        """A vector of each text in float32, as `config.pooling` says."""
        return self.pooling(self.encode_text(tokens, mask), mask)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of its activations, which is that of the weights unless they are quantized."""
        return self.token_embedding.weight.dtype

    @property
    def device(self) -> torch.device:
        """The device of its weights."""
        return self.token_embedding.weight.device

    def make_cache(self, batch: int, capacity: int) -> KeyValueCache:
        """An empty cache for a batch of sequences of at most `capacity` tokens, on the model's device, in its dtype."""
        if self.decoder is None:
            raise ValueError("only a decoder reads token by token")
        heads, head_dim, value_dim = self.decoder.cached
        sizes = {"layers": len(self.decoder.layers), "batch": batch, "capacity": capacity, "kv_heads": heads}
        return KeyValueCache(**sizes, head_dim=head_dim, value_dim=value_dim, device=self.device, dtype=self.dtype)

    def _check_inputs(
        self,
        tokens: Tensor,
        mask: Tensor | None,
        source: Tensor | None,
        source_mask: Tensor | None,
        targets: Tensor | None,
    ) -> None:
        """Raise UserError for tokens, masks or targets that do not fit each other."""
        for name, ids, its_mask in (("tokens", tokens, mask), ("source", source, source_mask)):
            if ids is not None and ids.dim() != 2:
                raise UserError(f"{name}: [batch, time], not {[*ids.shape]}; write {name}[None] for a single text.")
            if ids is not None and its_mask is not None and (its_mask.dtype, its_mask.shape) != (torch.bool, ids.shape):
                given = f"{its_mask.dtype} {[*its_mask.shape]}"
                raise UserError(f"The mask of {name} is torch.bool {[*ids.shape]}, True for a real token, not {given}.")
        places = 1 if self.config.head.kind == "classification" else 2
        if targets is not None and targets.shape[:places] != tokens.shape[:places]:
            each, given = "text" if places == 1 else "token", f"{[*targets.shape]} for tokens {[*tokens.shape]}"
            raise UserError(f"targets: one for each {each}, not {given}.")

    @property
    def _last_stack(self) -> Stack:
        """The stack whose hidden states the head reads."""
        stack = self.decoder or self.encoder
        assert stack is not None
        return stack

    def _encoder_states(
        self,
        source: Tensor | None,
        source_mask: Tensor | None,
        cache: KeyValueCache | None,
        hidden_states: list[Tensor] | None,
    ) -> Tensor | None:
        """The encoder's output; None where there is none, or the cache has what the decoder needs of it."""
        if not self.config.is_encoder_decoder:
            if source is not None:
                raise ValueError("only an encoder-decoder reads a source")
            return None
        if source is None:
            if cache is None or cache.layers[0].encoder_kv is None:
                raise ValueError("an encoder-decoder needs a source: model(tokens, source=...)")
            return None
        if cache is not None:
            cache.source_mask = source_mask
        return self.encode(source, source_mask, hidden_states=hidden_states)

    def _query_index(self, tokens: Tensor, mask: Tensor | None, last_only: bool, pooled_only: bool) -> Tensor | None:
        """The position of each text whose last hidden state is needed; None: those of all tokens are."""
        if last_only and self.pooler is None and tokens.shape[1] > 1:
            return last_token(tokens)
        if pooled_only and self.pooler is not None and self.config.head.kind == "classification":
            return None if self.pooler.token is None else self.pooler.token(tokens, mask)
        return None

    def _score(
        self,
        hidden: Tensor,
        pooled: Tensor | None,
        targets: Tensor | None,
        return_logits: bool,
        label_smoothing: float,
    ) -> tuple[Tensor | None, Tensor | None]:
        """The head's logits and the loss, where they are asked for."""
        weight, logits = self.token_embedding.weight, None
        if targets is None and not return_logits:
            return None, None
        if isinstance(self.head, LanguageModelHead):
            if targets is not None and not return_logits:
                return None, self.head.loss(hidden, targets, weight, label_smoothing=label_smoothing)
            logits = self.head(hidden, weight)
        elif isinstance(self.head, Classifier):
            logits = self.head(hidden if self.config.head.kind == "token_classification" else pooled)
        if logits is None or targets is None:
            return logits, None
        return logits, loss(logits, targets, label_smoothing, self.config.head.problem_type)

    def _balanced(self, mean: Tensor | None, mask: Tensor | None, source_mask: Tensor | None) -> Tensor | None:
        """The loss of a language model with what balances its experts in training."""
        if mean is not None and isinstance(self.head, LanguageModelHead) and self.training:
            for part, real in ((self.encoder, source_mask if self.decoder else mask), (self.decoder, mask)):
                balance = None if part is None else part.balance_loss(real)
                mean = mean if balance is None else mean + balance
        return mean

    def _shift_right(self, tokens: Tensor, mask: Tensor | None) -> Tensor:
        """The tokens one place later, after the decoder's start token."""
        start = self.config.special_tokens.decoder_start
        if start is None:
            raise ValueError("the decoder reads the text after a start token: special_tokens.decoder_start is missing")
        if mask is not None:
            tokens = tokens.where(mask, start)
        return F.pad(tokens[:, :-1], (1, 0), value=start)


def new_pooler(config: ModelConfig) -> Pooler | None:
    """The pooler of a model, as torch draws it; None where it has none."""
    head = config.head
    return Pooler(head, config.d_model) if head.pooler or head.kind == "classification" else None


def new_head(config: ModelConfig) -> LanguageModelHead | Classifier | None:
    """The head of a model, as torch draws it; None where it has none."""
    head, embedding = config.head, config.embedding
    if head.kind == "language_model":
        tied, width = embedding.tied, embedding.width
        return LanguageModelHead(head, config.norm, config.d_model, config.vocab_size, tied=tied, width=width)
    if head.kind in ("classification", "token_classification"):
        return Classifier(head, config.norm, config.d_model)
    return None


def build(config: ModelConfig, cut: Cut | None = None) -> Transformer:
    """A fresh model: weights drawn as the family's paper does, in training mode. Seed them with `torch.manual_seed`.

    Args:
        cut: What this process keeps of each matrix, which the processes share; they draw the same ones. None: all of
            it.
    """
    if cut is None:
        return Transformer(config)
    with kept_in_pieces(cut):
        model = Transformer(config, initialize=False)
    initialize_pieces(model, config, cut)
    return model


def skeleton(config: ModelConfig) -> Transformer:
    """A model whose weights have shapes but no storage: to be counted, or filled from a file.

    Raises UserError for sizes too large to be counted in bytes.
    """
    try:
        with torch.device("meta"):
            return Transformer(config, initialize=False)
    except (RuntimeError, OverflowError) as error:  # torch counts bytes in 64 bits
        raise UserError(f"No machine has room for a model of these sizes: {str(error).splitlines()[0]}.") from error
