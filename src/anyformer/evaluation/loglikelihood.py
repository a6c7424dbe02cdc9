"""Log-likelihoods of continuations. A context that several of them have in common is read once."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from anyformer.blocks.head import LanguageModelHead
from anyformer.blocks.kv_cache import KeyValueCache
from anyformer.generation.cached_decoder import DecoderStep, common_prefix
from anyformer.generation.inference import check_ids, check_nan, evaluating, require_generative
from anyformer.generation.prompt import decoder_start_id, pad
from anyformer.model import Transformer

Ids = tuple[int, ...]

_SCORED_TOKENS, _READ_TOKENS = 512, 4096
"""Tokens of a batch, padding included: those whose logits are held, and those that are only read."""
_WORTH_SHARING = 32
"""Tokens that all texts of a batch must begin with to be read before the others."""


class Continuation(NamedTuple):
    """What is scored.

    Attributes:
        context: Tokens that it follows, at least one; of an encoder-decoder the source.
        ids: Its tokens, at least one.
    """

    context: Sequence[int]
    ids: Sequence[int]


class LogLikelihood(NamedTuple):
    """How likely a continuation is.

    Attributes:
        logprobs: Of each token, in nats.
        is_greedy: Whether each of its tokens is the likeliest one after those before it.
    """

    logprobs: Sequence[float]
    is_greedy: bool

    @property
    def logprob(self) -> float:
        """That of the whole continuation, in nats."""
        return math.fsum(self.logprobs)


def log_likelihoods(
    model: Transformer,
    continuations: Sequence[Continuation],
    *,
    max_length: int | None = None,
    progress: Callable[[int], None] = lambda count: None,
) -> list[LogLikelihood]:
    """Score continuations.

    Args:
        model: A decoder-only model or an encoder-decoder.
        continuations: Of any lengths. What is too long with its context loses the beginning of the context.
        max_length: Tokens that the model is to see at most; None: as many as it was trained on.
        progress: Called after each batch with the number of its continuations.

    Raises:
        UserError: a model that doesn't generate text, an id outside of its vocabulary, an output that is NaN.
        ValueError: a continuation that is empty, has no context, or is longer than `max_length`.
    """
    require_generative(model)
    found: dict[int, LogLikelihood] = {}
    with evaluating(model), torch.inference_mode():
        read = _EncoderDecoder(model) if model.config.is_encoder_decoder else _Decoder(model)
        for batch in _batches(_contexts(model, continuations, max_length or model.config.max_length)):
            logits = read(batch)
            check_nan(logits.flatten(0, 1))
            targets = [(row, *target) for row, (_, queries) in enumerate(batch.rows) for target in queries]
            found |= _pick(logits, targets)
            progress(len(targets))
    return [found[index] for index in range(len(continuations))]


Queries = list[tuple[int, Ids]]
"""Continuations that differ at most in their last token, and their indices."""


@dataclass(frozen=True)
class _Context:
    """What is read before (of an encoder-decoder the source), and the tokens after which logits are needed."""

    ids: Ids
    rows: dict[Ids, Queries] = field(default_factory=dict[Ids, Queries])


@dataclass(frozen=True)
class _Batch:
    """Rows of some contexts: the tokens of each, and the number of its context."""

    contexts: list[Ids] = field(default_factory=list[Ids])
    rows: list[tuple[Ids, Queries]] = field(default_factory=list[tuple[Ids, Queries]])
    owners: list[int] = field(default_factory=list[int])

    def has_room(self, context: _Context, ids: Ids) -> bool:
        """Whether a row of this context would still fit."""
        scored = max(len(ids), max((len(row) for row, _ in self.rows), default=0)) * (len(self.rows) + 1)
        read = max(len(context.ids), max(map(len, self.contexts), default=0)) * (len(self.contexts) + 1)
        return not self.rows or (scored <= _SCORED_TOKENS and read <= _READ_TOKENS)


def _contexts(model: Transformer, continuations: Sequence[Continuation], longest: int) -> list[_Context]:
    """The distinct contexts, with the distinct tokens behind each."""
    contexts: dict[Ids, _Context] = {}
    start = (decoder_start_id(model),) if model.config.is_encoder_decoder else ()
    for index, (context, ids) in enumerate(continuations):
        if not context or not 1 <= len(ids) <= longest:
            raise ValueError(f"a continuation has a context and from 1 to {longest} tokens")
        if start:
            before, read = tuple(context[-longest:]), (*start, *ids[:-1])
        else:
            seen = (*context, *ids)[-longest - 1 : -1]
            before, read = seen[: len(seen) - len(ids)], seen[len(seen) - len(ids) :]
        contexts.setdefault(before, _Context(before)).rows.setdefault(read, []).append((index, tuple(ids)))
    return [*contexts.values()]


def _batches(contexts: list[_Context]) -> Iterator[_Batch]:
    """Contexts of about the same length, with rows of about the same length, the longest first."""
    batch = _Batch()
    contexts.sort(key=lambda each: (round(8 * math.log2(8 + len(each.ids))), max(map(len, each.rows))), reverse=True)
    for context in contexts:
        new = True
        for ids, queries in context.rows.items():
            if not batch.has_room(context, ids):
                yield batch
                batch, new = _Batch(), True
            if new:
                batch.contexts.append(context.ids)
                new = False
            batch.rows.append((ids, queries))
            batch.owners.append(len(batch.contexts) - 1)
    if batch.rows:
        yield batch


class _Decoder:
    """The logits of a batch by a decoder-only model: contexts are read once, and their keys and values copied."""

    def __init__(self, model: Transformer) -> None:
        self.model, self.step = model, DecoderStep(model)

    def __call__(self, batch: _Batch) -> Float[Tensor, "rows time vocab"]:
        device = self.model.device
        contexts, shared = batch.contexts, _common_length(batch.contexts)
        longest = max(map(len, contexts))
        capacity = longest + max(len(ids) for ids, _ in batch.rows)
        if shared >= _WORTH_SHARING and len(contexts) > 1:
            cache = self.model.make_cache(1, capacity)
            self._read([contexts[0][:shared]], cache)
            cache.select(torch.zeros(len(contexts), dtype=torch.long, device=device))
        else:
            cache, shared = self.model.make_cache(len(contexts), capacity), 0
        if longest > shared:
            self._read([ids[shared:] for ids in contexts], cache)
        if batch.owners != [*range(len(contexts))]:
            cache.select(torch.tensor(batch.owners, device=device))
        ids, mask = _pad([ids for ids, _ in batch.rows], self.model)
        return self.step(ids, cache, mask=mask)

    def _read(self, rows: Sequence[Ids], cache: KeyValueCache) -> None:
        ids, mask = _pad(rows, self.model)
        self.step(ids, cache, mask=mask, last_only=True)


class _EncoderDecoder:
    """The logits of a batch by an encoder-decoder: sources are read once."""

    def __init__(self, model: Transformer) -> None:
        self.model = model

    def __call__(self, batch: _Batch) -> Float[Tensor, "rows time vocab"]:
        model, owners = self.model, torch.tensor(batch.owners, device=self.model.device)
        assert model.decoder is not None
        assert isinstance(model.head, LanguageModelHead)
        source, source_mask = _pad(batch.contexts, model, model.config.source_vocab_size)
        states = model.encode(source, source_mask)[owners]
        ids, mask = _pad([ids for ids, _ in batch.rows], model)
        hidden = model.decoder(
            model.token_embedding(ids),
            ids,
            mask=mask,
            encoder_states=states,
            source_mask=None if source_mask is None else source_mask[owners],
        )
        return model.head(hidden, model.token_embedding.weight).float()


def _pad(rows: Sequence[Ids], model: Transformer, vocab_size: int | None = None) -> tuple[Tensor, Tensor | None]:
    """Rows as one tensor, padded on the right, and its mask, None without padding. Raises UserError for wrong ids."""
    padding = model.config.embedding.padding or 0
    ids, mask = pad(rows, padding, model.device)
    check_ids(ids, vocab_size or model.config.vocab_size)
    return ids, None if bool(mask.all()) else mask


def _common_length(rows: Sequence[Ids]) -> int:
    """How many tokens all rows begin with: as many as the first and the last in the order of their tokens."""
    return common_prefix(min(rows), max(rows))


def _pick(
    logits: Float[Tensor, "rows time vocab"], targets: Sequence[tuple[int, int, Ids]]
) -> dict[int, LogLikelihood]:
    """The log-likelihoods by index, from the row of the logits, the index and the ids of each."""
    rows = torch.tensor([row for row, _, _ in targets], device=logits.device)
    ids, mask = pad([ids for _, _, ids in targets], 0, logits.device)
    time = torch.arange(ids.shape[1], device=logits.device)
    check_ids(ids, logits.shape[-1])
    logprobs = logits[rows[:, None], time, ids] - logits.logsumexp(dim=-1)[rows, : ids.shape[1]]
    greedy = ((logits.argmax(dim=-1)[rows, : ids.shape[1]] == ids) | ~mask).all(dim=1)
    found: list[list[float]] = logprobs.tolist()
    return {
        index: LogLikelihood(each[: len(ids)], bool(is_greedy))
        for (_, index, ids), each, is_greedy in zip(targets, found, greedy, strict=True)
    }
